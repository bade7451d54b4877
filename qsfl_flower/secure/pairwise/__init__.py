"""Sums under pairwise masks, for federations without a committee.

`graph` says who masks with whom, `terms` what a sum is about. `client` holds the three steps of a
client, `server` what the server does between them; `masks`, `ring`, `recovery` and `seeds` are the
arithmetic. Nothing here knows Flower: bytes and vectors go in, bytes and vectors come out.
"""
