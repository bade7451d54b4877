"""Sums of vectors that nobody sees: arithmetic, secret sharing and the rules of the committee.

From the bottom up: `field` (integers modulo 2^61 - 1, by the array), `fixed_point` (floats as field
elements), `shamir` (sharing and reconstruction). Nothing here knows Flower, torch, or the network.
"""
