"""Keys of simulated federations: made once, kept, private, never from the seed."""

import stat
from types import SimpleNamespace

import pytest

from qsfl_flower.crypto.errors import Rejected
from qsfl_flower.simulations import federation
from qsfl_flower.simulations.config import experiment_from_dict


def experiment(folder, seed=0, count=3):
    return experiment_from_dict(
        {
            "seed": seed,
            "clients": {"count": count},
            "strategy": {"name": "fedavg", "stages": [{"stage": "authenticate"}]},
            "output": {"folder": str(folder)},
        }
    )


def context(partition):
    return SimpleNamespace(node_config={"partition-id": partition})


def key_id(credentials):
    return credentials.identity.keys[0].signing.public.key_id


def test_keys_are_made_once_and_are_private(tmp_path):
    first = federation.server_credentials(experiment(tmp_path, seed=1))
    federation._load.cache_clear()
    again = federation.server_credentials(experiment(tmp_path, seed=2))
    assert key_id(first) == key_id(again)
    (folder,) = (tmp_path / ".keys").iterdir()
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = federation.server_credentials(experiment(tmp_path / "elsewhere", seed=1))
    assert key_id(first) != key_id(other), "the seed decides no key"


def test_every_client_has_its_own_keys_and_an_impostor_has_none_that_count(tmp_path):
    chosen = experiment(tmp_path)
    server = federation.server_credentials(chosen)
    ids = {key_id(federation.client_credentials(chosen, context(n), False)) for n in range(3)}
    assert len(ids) == 3
    impostor = federation.client_credentials(chosen, context(1), True)
    now = server.roster.issued_at
    with pytest.raises(Rejected, match="wrong-key"):
        server.roster.find("1", key_id(impostor), "client", now)


def test_keys_that_end_soon_are_made_anew(tmp_path, monkeypatch):
    chosen = experiment(tmp_path)
    first = key_id(federation.server_credentials(chosen))
    federation._load.cache_clear()
    later = federation.unix_time() + 25 * 86400
    monkeypatch.setattr(federation, "unix_time", lambda: later)
    assert key_id(federation.server_credentials(chosen)) != first
