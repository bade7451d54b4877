"""Sums under masks that cancel."""
