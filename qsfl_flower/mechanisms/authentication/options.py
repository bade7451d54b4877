"""Authentication: the one description of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True, kw_only=True)
class AuthenticateOptions(Options):
    """Lets in only what enrolled clients have signed; clients obey only the server's signature."""

    encrypt: bool = option(
        "Encrypt the arrays of the replies under the session with the server.", False
    )
