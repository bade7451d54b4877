"""The model goes out as what changed."""
