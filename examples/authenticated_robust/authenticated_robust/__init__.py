"""Handwritten digits; only enrolled clients count, and two may send anything."""
