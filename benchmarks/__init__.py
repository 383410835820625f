"""Measurements that anyone can repeat, each a ratio against something in the same run."""
