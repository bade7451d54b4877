"""Post-quantum identities, sessions and signed messages; pure functions over bytes, no Flower."""
