"""quickstart-sklearn: a Flower app."""
