"""Flower clients and mods (the client's side of a round).

Names are loaded on first use: a ClientApp process lives for one message, and torch is slow to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsfl_flower.clients.analytics import analytics_app, table_mod
    from qsfl_flower.clients.bridge import numpy_client_app
    from qsfl_flower.clients.checkpoints import ClientCheckpoints
    from qsfl_flower.clients.conditions import Conditions
    from qsfl_flower.clients.device import DeviceClass, DeviceProfile, SystemMonitor, TraceMonitor
    from qsfl_flower.clients.dpsgd import DPSGD, GradientSums
    from qsfl_flower.clients.kept_state import state_mod
    from qsfl_flower.clients.lora import Adapters, LoraClient, lora_app, token_data
    from qsfl_flower.clients.mobile import MobileClient
    from qsfl_flower.clients.mobile_session import Device
    from qsfl_flower.clients.models import roles_of
    from qsfl_flower.clients.mods import legacy_mod, qsfl_mod
    from qsfl_flower.clients.personal import PersonalClient
    from qsfl_flower.clients.privacy import policy_mod, privacy_mod
    from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
    from qsfl_flower.clients.role_check import check_roles
    from qsfl_flower.clients.scaffold import ScaffoldClient
    from qsfl_flower.clients.trained import set_trained_arrays, trained_arrays
    from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
    from qsfl_flower.clients.workload import Workload
    from qsfl_flower.mechanisms.authentication.client import auth_mod, credentials_from_node_config
    from qsfl_flower.node.policy import NodePolicy

_WHERE = {
    "Adapters": "qsfl_flower.clients.lora",
    "ClientCheckpoints": "qsfl_flower.clients.checkpoints",
    "Conditions": "qsfl_flower.clients.conditions",
    "DPSGD": "qsfl_flower.clients.dpsgd",
    "Device": "qsfl_flower.clients.mobile_session",
    "DeviceClass": "qsfl_flower.clients.device",
    "DeviceProfile": "qsfl_flower.clients.device",
    "LoraClient": "qsfl_flower.clients.lora",
    "MobileClient": "qsfl_flower.clients.mobile",
    "PersonalClient": "qsfl_flower.clients.personal",
    "ScaffoldClient": "qsfl_flower.clients.scaffold",
    "GradientSumClient": "qsfl_flower.clients.private_training",
    "GradientSums": "qsfl_flower.clients.dpsgd",
    "PrivateTrainingClient": "qsfl_flower.clients.private_training",
    "NodePolicy": "qsfl_flower.node.policy",
    "policy_mod": "qsfl_flower.clients.privacy",
    "privacy_mod": "qsfl_flower.clients.privacy",
    "SystemMonitor": "qsfl_flower.clients.device",
    "TraceMonitor": "qsfl_flower.clients.device",
    "Workload": "qsfl_flower.clients.workload",
    "TrainConfig": "qsfl_flower.clients.trainer",
    "TrainingClient": "qsfl_flower.clients.trainer",
    "analytics_app": "qsfl_flower.clients.analytics",
    "auth_mod": "qsfl_flower.mechanisms.authentication.client",
    "check_roles": "qsfl_flower.clients.role_check",
    "credentials_from_node_config": "qsfl_flower.mechanisms.authentication.client",
    "legacy_mod": "qsfl_flower.clients.mods",
    "lora_app": "qsfl_flower.clients.lora",
    "numpy_client_app": "qsfl_flower.clients.bridge",
    "qsfl_mod": "qsfl_flower.clients.mods",
    "roles_of": "qsfl_flower.clients.models",
    "set_trained_arrays": "qsfl_flower.clients.trained",
    "state_mod": "qsfl_flower.clients.kept_state",
    "table_mod": "qsfl_flower.clients.analytics",
    "token_data": "qsfl_flower.clients.lora",
    "trained_arrays": "qsfl_flower.clients.trained",
}

__all__ = [
    "DPSGD",
    "Adapters",
    "ClientCheckpoints",
    "Conditions",
    "Device",
    "DeviceClass",
    "DeviceProfile",
    "GradientSumClient",
    "GradientSums",
    "LoraClient",
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
    "analytics_app",
    "auth_mod",
    "check_roles",
    "credentials_from_node_config",
    "legacy_mod",
    "lora_app",
    "numpy_client_app",
    "policy_mod",
    "privacy_mod",
    "qsfl_mod",
    "roles_of",
    "set_trained_arrays",
    "state_mod",
    "table_mod",
    "token_data",
    "trained_arrays",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
