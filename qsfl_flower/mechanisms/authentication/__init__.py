"""Signed instructions, signed replies, and sessions."""

from qsfl_flower.mechanisms.authentication.options import AuthenticateOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import Trait

AUTHENTICATE = Mechanism(
    "authenticate",
    AuthenticateOptions,
    server="qsfl_flower.mechanisms.authentication.server:Authenticate",
    needs=("credentials",),
    traits=frozenset({Trait.HANDLES_MESSAGES, Trait.PROVES_NAMES}),
)
"""The clients' half is a mod of its own, `qsfl_flower.clients.auth_mod`."""
