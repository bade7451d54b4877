"""Questions about the tables of all clients, answered by sums that are hidden and noisy."""
