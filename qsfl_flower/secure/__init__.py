"""Sums of vectors that nobody sees: arithmetic, secret sharing and the rules of the committee.

From the bottom up: `field` (integers modulo 2^61 - 1, by the array), `fixed_point` (floats as field
elements), `shamir` (sharing and reconstruction), `decoding` (opening values of which some are
lies), `zero_sharing` (masks for products and sums), `krum` (selection on exact distances), `terms`
(what everybody signs), `dealing` (a client's part), `committee` (a member's), `verdict` (the
server's). Nothing here knows Flower, torch, or the network.
"""
