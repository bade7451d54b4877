"""What the server does with the mean."""
