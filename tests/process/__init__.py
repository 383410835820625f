"""Tests of the real processes."""
