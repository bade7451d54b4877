"""Post-quantum identities, sessions and signed messages; pure functions over bytes, no Flower.

From the bottom up: `algorithms` (KEMs and signatures by name), `hybrid` (X25519 with a KEM),
`sealing` (one payload to one public key), `statement` (whatever is signed), `identity`,
`enrolment`, `roster` (who belongs to the federation), `keyfile`, `rosterfile` (that on disk),
`messages`, `digest`, `replay`, `envelope` (a round's signed messages), `handshake`, `session`
(encrypted payloads between a client and the server), `federation` (everybody's keys at once, for
simulations).

Every error is a `qsfl_flower.errors.CryptoError`; a peer's message that is not acceptable raises
`errors.Rejected` with a named reason.
"""
