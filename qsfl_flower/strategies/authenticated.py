"""Ready strategy: federated averaging among enrolled clients only."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.strategies.options import StrategyOptions, first
from qsfl_flower.strategies.stable import StableFedAvg


class AuthenticatedFedAvg(StableFedAvg):
    """`StableFedAvg` with the stage `Authenticate`.

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    encrypt : bool
        Encrypt the arrays of the replies under the session with each client.
    **options
        Further arguments of `StableFedAvg`, ``stages`` among them.

    Notes
    -----
    Who sees what: see `Authenticate`.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=3).credentials  # or the path of the server's key folder
    >>> strategy = AuthenticatedFedAvg(fraction_train=0.5, credentials=keys, encrypt=True)
    """

    def __init__(
        self,
        *,
        credentials: Credentials | Path | str,
        encrypt: bool = False,
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(**first(options, Authenticate(credentials, encrypt)))
