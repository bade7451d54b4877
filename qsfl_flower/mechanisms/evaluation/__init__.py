"""Numbers of the clients' evaluation as bounded sums: `core` counts, `client` and `server` ask."""
