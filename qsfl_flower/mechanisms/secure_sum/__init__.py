"""Sums and distances that only a committee can open."""
