"""Who can reach Ray while a simulation runs: only this machine, and only who knows a random token.

By default Ray listens on every interface, and whoever connects may run code as this user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from qsfl_flower.crypto.sources import random_bytes

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for: more than one machine. Without it Ray keeps to the loopback interface."""


def close_ray(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set Ray's environment for a simulation in this process, before Ray starts.

    Ray's processes inherit it. A token is drawn once in a process and is in no log, file or command
    line. What the user has set stays, and so does a cluster that the user names.
    """
    if "RAY_ADDRESS" in environment:
        return
    environment.setdefault(_CLUSTER, "0")
    if environment.setdefault(MODE, "token") != "token":
        return
    if TOKEN_FILE not in environment:
        environment.setdefault(TOKEN, random_bytes(32, "ray token").hex())


def is_open(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a Ray that starts with this environment asks for no token."""
    return environment.get(MODE) != "token"


def explain_ray(environment: Mapping[str, str] = os.environ) -> str:
    """Say who can reach Ray while ``qsfl run`` simulates."""
    if "RAY_ADDRESS" in environment:
        return "Ray is the cluster that RAY_ADDRESS names; who reaches it may run code as its user"
    if environment.get(MODE, "token") != "token":
        return f"Ray asks for no token ({MODE} says so): who reaches it may run code as this user"
    return "Ray listens on the loopback interface alone and asks every process for a random token"
