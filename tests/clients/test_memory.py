"""What a node must not forget survives its process, and two processes take turns."""

import multiprocessing
import os
import stat
from contextlib import suppress

import pytest
from flwr.app import Context, RecordDict

from qsfl_flower.errors import ConfigError
from qsfl_flower.node.memory import facts_of, is_durable


def node(folder=None, **config):
    if folder is not None:
        config["qsfl-state"] = str(folder)
    return Context(1, 99, config, RecordDict(), {})


@pytest.fixture(params=["state", "folder"])
def context(request, tmp_path):
    return node(tmp_path / "memory" if request.param == "folder" else None)


def test_facts_are_kept_changed_and_forgotten(context):
    with facts_of(context) as facts:
        facts["a/one"], facts["a/two"] = b"1", b"2"
    with facts_of(context) as facts:
        assert dict(facts) == {"a/one": b"1", "a/two": b"2"}
        del facts["a/one"]
        facts["a/two"] = b"3"
    with facts_of(context) as facts:
        assert dict(facts) == {"a/two": b"3"}


def test_nothing_changes_if_the_work_fails(context):
    with facts_of(context) as facts:
        facts["count"] = b"1"
    with suppress(RuntimeError), facts_of(context) as facts:
        facts["count"] = b"2"
        raise RuntimeError
    with facts_of(context) as facts:
        assert facts["count"] == b"1"


def test_a_folder_outlives_the_client_state_and_is_private(tmp_path):
    folder = tmp_path / "memory"
    with facts_of(node(folder)) as facts:
        facts["x"] = b"kept"
    with facts_of(node(folder)) as facts:  # a new process comes with an empty client state
        assert facts["x"] == b"kept"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in folder.iterdir())
    assert is_durable(node(folder))
    assert not is_durable(node())


def test_devices_of_one_host_do_not_share_facts(tmp_path):
    with facts_of(node(tmp_path, **{"partition-id": 1})) as facts:
        facts["x"] = b"1"
    with facts_of(node(tmp_path, **{"partition-id": 2})) as facts:
        assert "x" not in facts


def _count(folder, times):
    for _ in range(times):
        with facts_of(node(folder)) as facts:
            facts["n"] = str(int(facts.get("n", b"0")) + 1).encode()


def test_two_processes_take_turns(tmp_path):
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_count, args=(tmp_path, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    with facts_of(node(tmp_path)) as facts:
        assert facts["n"] == b"60"


def test_a_killed_process_leaves_the_last_finished_step(tmp_path):
    _count(tmp_path, 3)
    child = os.fork()
    if child == 0:
        with facts_of(node(tmp_path)) as facts:
            facts["n"] = b"1000"
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with facts_of(node(tmp_path)) as facts:
        assert facts["n"] == b"3"


@pytest.mark.parametrize("folder", ["relative/folder", 7])
def test_a_bad_setting_is_named(folder):
    with (
        pytest.raises(ConfigError, match="qsfl-state is"),
        facts_of(node(**{"qsfl-state": folder})),
    ):
        pass


def test_a_damaged_or_linked_file_stops_the_node(tmp_path):
    (tmp_path / "memory.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="nothing is answered"), facts_of(node(tmp_path)):
        pass
    target = tmp_path / "elsewhere"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "memory.sqlite").symlink_to(target)
    with pytest.raises(ConfigError, match="cannot be used"), facts_of(node(tmp_path / "linked")):
        pass
    assert not target.exists()
