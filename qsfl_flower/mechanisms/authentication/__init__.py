"""Signed messages and enrolled clients."""
