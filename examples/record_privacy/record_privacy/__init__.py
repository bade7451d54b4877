"""Handwritten digits; every picture is protected by differential privacy."""
