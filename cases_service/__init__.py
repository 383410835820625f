"""Serves the cases of an organization's signed-in visitors."""

__version__ = "0.1.0"
