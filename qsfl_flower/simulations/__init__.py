"""Experiments: their configuration, the runs on Flower's Ray backend, reports, and the command."""
