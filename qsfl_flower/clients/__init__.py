"""Flower clients and mods (the client's side of a round).

Names are loaded on first use: a ClientApp process lives for one message, and torch is slow to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsfl_flower.clients.authentication import auth_mod, credentials_from_node_config
    from qsfl_flower.clients.bridge import numpy_client_app
    from qsfl_flower.clients.checkpoints import ClientCheckpoints
    from qsfl_flower.clients.conditions import Conditions
    from qsfl_flower.clients.device import DeviceClass, DeviceProfile, SystemMonitor, TraceMonitor
    from qsfl_flower.clients.kept_state import state_mod
    from qsfl_flower.clients.mobile import Device, MobileClient
    from qsfl_flower.clients.models import roles_of
    from qsfl_flower.clients.mods import legacy_mod, qsfl_mod
    from qsfl_flower.clients.personal import PersonalClient
    from qsfl_flower.clients.policy import NodePolicy
    from qsfl_flower.clients.privacy import policy_mod, privacy_mod
    from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
    from qsfl_flower.clients.role_check import check_roles
    from qsfl_flower.clients.scaffold import ScaffoldClient
    from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
    from qsfl_flower.clients.workload import Workload

_WHERE = {
    "ClientCheckpoints": "checkpoints",
    "Conditions": "conditions",
    "Device": "mobile",
    "DeviceClass": "device",
    "DeviceProfile": "device",
    "MobileClient": "mobile",
    "PersonalClient": "personal",
    "ScaffoldClient": "scaffold",
    "GradientSumClient": "private_training",
    "PrivateTrainingClient": "private_training",
    "NodePolicy": "policy",
    "policy_mod": "privacy",
    "privacy_mod": "privacy",
    "SystemMonitor": "device",
    "TraceMonitor": "device",
    "Workload": "workload",
    "TrainConfig": "trainer",
    "TrainingClient": "trainer",
    "auth_mod": "authentication",
    "check_roles": "role_check",
    "credentials_from_node_config": "authentication",
    "legacy_mod": "mods",
    "numpy_client_app": "bridge",
    "qsfl_mod": "mods",
    "roles_of": "models",
    "state_mod": "kept_state",
}

__all__ = [
    "ClientCheckpoints",
    "Conditions",
    "Device",
    "DeviceClass",
    "DeviceProfile",
    "GradientSumClient",
    "MobileClient",
    "NodePolicy",
    "PersonalClient",
    "PrivateTrainingClient",
    "ScaffoldClient",
    "SystemMonitor",
    "TraceMonitor",
    "TrainConfig",
    "TrainingClient",
    "Workload",
    "auth_mod",
    "check_roles",
    "credentials_from_node_config",
    "legacy_mod",
    "numpy_client_app",
    "policy_mod",
    "privacy_mod",
    "qsfl_mod",
    "roles_of",
    "state_mod",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
