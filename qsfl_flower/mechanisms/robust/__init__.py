"""Rules that a minority cannot mislead."""
