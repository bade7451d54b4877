"""Client checkpoints: whole or absent, checked, bounded, private."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.clients.checkpoints import ClientCheckpoint, ClientCheckpoints
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import ConfigError

KEY = Secret(b"k" * 32)


def make(step=1, server_round=3, size=5):
    arrays = {"w": np.arange(size, dtype=np.float32), "order": np.array([2, 0, 1])}
    return ClientCheckpoint(server_round, "v", step, arrays, {"loss": 0.1 + 0.2, "n": [1, None]})


def same(a, b):
    assert (a.server_round, a.version, a.step, a.values) == (
        b.server_round, b.version, b.step, b.values,
    )  # fmt: skip
    assert {k: v.tobytes() for k, v in a.arrays.items()} == {
        k: v.tobytes() for k, v in b.arrays.items()
    }


@pytest.mark.parametrize("key", [None, KEY])
def test_round_trip(tmp_path, key):
    store = ClientCheckpoints(tmp_path / "deep" / "er", owner="me", key=key)
    assert store.latest(3, 0) is None
    assert store.save(make())
    same(store.latest(3, 0), make())
    (path,) = store.folder.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert (b"loss" in path.read_bytes()) == (key is None)
    store.clear()
    assert store.latest(3, 0) is None


def test_only_the_newest_are_kept_within_the_room(tmp_path):
    store = ClientCheckpoints(tmp_path, keep=2)
    for step in range(1, 6):
        store.save(make(step))
    assert [p.name[-9:-5] for p in sorted(tmp_path.iterdir())] == ["0004", "0005"]
    size = sum(p.stat().st_size for p in tmp_path.iterdir()) / 2
    tight = ClientCheckpoints(tmp_path, keep=9, max_bytes=int(1.5 * size))
    tight.save(make(6))
    assert [p.name[-6:-5] for p in tmp_path.iterdir()] == ["6"]


def test_what_is_too_large_is_not_written(tmp_path, caplog):
    store = ClientCheckpoints(tmp_path, max_bytes=1000)
    assert not store.save(make(size=10_000))
    assert not list(tmp_path.iterdir())
    assert "at most 1000" in caplog.text


def test_an_unwritable_folder_costs_only_the_checkpoint(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert not ClientCheckpoints(tmp_path / "file" / "x").save(make())
    assert "not written" in caplog.text


@pytest.mark.parametrize("key", [None, KEY])
@given(data=st.data())
def test_any_damage_is_noticed_and_an_older_one_is_used(tmp_path_factory, key, data):
    store = ClientCheckpoints(tmp_path_factory.mktemp("c"), key=key)
    store.save(make(1))
    store.save(make(2))
    path = sorted(store.folder.iterdir())[-1]
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    path.write_bytes(content)
    same(store.latest(3, 0), make(1))


@pytest.mark.parametrize(
    ("now", "staleness", "found"), [(3, 0, 1), (5, 2, 1), (6, 2, 0), (2, 9, 0)]
)
def test_staleness(tmp_path, now, staleness, found):
    store = ClientCheckpoints(tmp_path)
    store.save(make())
    assert (store.latest(now, staleness) is not None) == bool(found)
    assert len(list(tmp_path.iterdir())) == found


def test_others_are_left_alone(tmp_path):
    ClientCheckpoints(tmp_path, owner="a").save(make())
    assert ClientCheckpoints(tmp_path, owner="b").latest(3, 0) is None
    assert ClientCheckpoints(tmp_path, owner="a", key=KEY).latest(3, 0) is None
    assert ClientCheckpoints(tmp_path, owner="a").latest(3, 0) is not None


def test_leftovers_of_an_interrupted_write_go_away(tmp_path):
    (tmp_path / ".round-000003-step-000000001.ckpt.abcd").write_bytes(b"half")
    store = ClientCheckpoints(tmp_path)
    assert store.latest(3, 0) is None
    store.save(make())
    assert len(list(tmp_path.iterdir())) == 1


def test_bounds_are_checked(tmp_path):
    with pytest.raises(ConfigError):
        ClientCheckpoints(tmp_path, keep=0)
