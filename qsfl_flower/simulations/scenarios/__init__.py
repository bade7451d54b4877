"""Demonstrations and experiments that tell one story each."""
