"""The demo: real data, a portal page, and curl lines to paste."""
