"""Handwritten digits; the server sees sums only."""
