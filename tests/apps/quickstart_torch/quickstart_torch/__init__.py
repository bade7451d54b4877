"""quickstart-torch: a Flower app."""
