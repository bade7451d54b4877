"""Limits on the size of updates."""
