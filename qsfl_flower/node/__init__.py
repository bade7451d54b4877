"""The engine on the device: steps, the node's policy and memory; no model, no torch."""
