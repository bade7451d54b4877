"""Ready strategy: federated averaging among enrolled clients only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.strategies.stable import StableFedAvg


class AuthenticatedFedAvg(StableFedAvg):
    """`StableFedAvg` with the stage `Authenticate`.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``.
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    encrypt : bool
        Encrypt the arrays of the replies under the session with each client.
    stages : Sequence[Stage]
        Further stages.
    **options
        Further keyword arguments of `StableFedAvg`.

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
        *args: Any,
        credentials: Credentials | Path | str,
        encrypt: bool = False,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        gate = Authenticate(credentials, encrypt)
        super().__init__(*args, stages=[gate, *stages], **options)
