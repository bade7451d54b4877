"""Differential privacy in its placements."""
