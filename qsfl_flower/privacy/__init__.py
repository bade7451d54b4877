"""Differential privacy: mechanisms, accounting, calibration, budgets, audit.

Pure functions over NumPy vectors; the server's stages and the clients' steps are built from them.
See docs/privacy.md for who adds noise where, against whom it protects, and why.
"""
