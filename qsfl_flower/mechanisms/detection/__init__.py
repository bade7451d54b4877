"""Unusual updates are flagged, suspects kept out."""
