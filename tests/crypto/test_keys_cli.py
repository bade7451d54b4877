"""``qsfl keys``, and the walk-through in docs/keys.md, run command by command."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from qsfl_flower.crypto import keyfile
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.keyfile import load_authority_key, load_identity
from qsfl_flower.crypto.roster import DAY, Roster, open_roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.simulations import keys_cli
from qsfl_flower.simulations.keys_cli import keys_app

DOCUMENT = Path(__file__).parents[2] / "docs" / "keys.md"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keyfile, "SCRYPT_N", 1 << 10)
    monkeypatch.delenv("QSFL_PASSPHRASE", raising=False)
    (tmp_path / "new").mkdir()
    (tmp_path / "passphrase.txt").write_text("correct horse\n")
    (tmp_path / "passphrase.txt").chmod(0o600)


def qsfl(command: str, code: int = 0, **more: object) -> Result:
    result = CliRunner().invoke(keys_app, shlex.split(command), **more)  # type: ignore[arg-type]
    assert result.exit_code == code, result.output
    return result


def opened() -> Roster:
    return open_roster(Path("roster.qsfl").read_bytes(), load_authority_key(Path("authority.pub")))


def federation() -> None:
    qsfl("authority")
    qsfl("client alice")
    qsfl("client hub --server")
    qsfl("roster --add alice.request --add hub.request")


def test_the_documented_walk_through() -> None:
    text = DOCUMENT.read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines()]
    assert len(commands) == 15
    assert all(command.startswith("qsfl keys ") for command in commands)
    shown = [qsfl(command.removeprefix("qsfl keys ")).output for command in commands]
    assert any("enrolment request" in output and "St. Mary's" in output for output in shown)
    roster = opened()
    assert {entry.identity.name: entry.status for entry in roster.entries if entry.revoked} == {
        "bob": "revoked"
    }
    assert sum(entry.identity.name == "alice" for entry in roster.entries) == 2
    assert load_identity(Path("carol.key"), Secret(b"correct horse")).name == "carol"


def test_the_documented_algorithms_and_costs_exist() -> None:
    from qsfl_flower.crypto.suite import DEFAULT_SUITE

    text = DOCUMENT.read_text()
    assert str(DEFAULT_SUITE) in text
    qsfl("client strong --kem ml-kem-1024 --signature ml-dsa-87")
    assert "x25519+ml-kem-1024/ml-dsa-87" in qsfl("show strong.request").output


def test_files_and_modes() -> None:
    federation()
    for name in ("authority.key", "alice.key", "hub.key", "authority.seen"):
        assert Path(name).stat().st_mode & 0o777 == 0o600
    assert opened().serial == 3  # two parties and the extension of the roster
    assert opened().find("hub", load_identity(Path("hub.key")).keys[0].signing.public.key_id,
                         "server", int(time.time()))  # fmt: skip


def test_no_command_prints_a_secret() -> None:
    federation()
    secrets = load_identity(Path("alice.key")).keys[0]
    shown = "".join(
        qsfl(command).output
        for command in ("show alice.key", "show authority.key", "rotate alice.key", "show hub.key")
    )
    assert secrets.signing.public.key_id.hex() in shown
    for secret in (secrets.signing.secret, secrets.encryption.x25519, secrets.storage):
        assert secret.reveal()[:8].hex() not in shown


def test_misuse_ends_with_code_2_and_a_sentence() -> None:
    federation()
    Path("empty").write_bytes(b"")
    cases = {
        "client alice": "alice.key exists already",
        "client 'no name'": "is not allowed",
        "client dave --signature rsa": "unknown signature 'rsa'",
        "client dave --out nowhere": "cannot be written",
        "authority": "authority.key exists already",
        "roster --add alice.request": "alice is enrolled already",
        "roster --add missing.request": "missing.request cannot be read",
        "roster --add empty": "malformed",
        "roster --authority alice.key": "expected 'authority'",
        "revoke nobody": "nobody is not in roster",
        "rotate missing.key": "cannot be read",
        "rotate authority.key": "expected 'identity'",
        "show empty": "malformed",
        "show roster.qsfl --authority alice.key": "expected 'authority-public'",
    }
    before = Path("roster.qsfl").read_bytes()
    for command, message in cases.items():
        result = qsfl(command, code=2)
        assert message in result.stderr, command
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
    assert Path("roster.qsfl").read_bytes() == before
    assert qsfl("unheard-of", code=2)
    assert qsfl("roster --days 0", code=2)


def test_rotation_needs_the_authority_in_between() -> None:
    federation()
    qsfl("rotate alice.key")
    assert "not in roster.qsfl yet" in qsfl("rotate alice.key", code=2).stderr
    assert "rotated alice" in qsfl("roster --add alice.request --overlap-days 3").output
    old, new = sorted(
        (entry for entry in opened().entries if entry.identity.name == "alice"),
        key=lambda entry: entry.not_after,
    )
    assert abs(old.not_after - time.time() - 3 * DAY) < 60
    assert new.key_id == load_identity(Path("alice.key")).keys[0].signing.public.key_id
    qsfl("rotate alice.key")


def test_an_old_copy_of_the_roster_is_not_signed_forward() -> None:
    federation()
    old = Path("roster.qsfl").read_bytes()
    qsfl("revoke alice")
    Path("roster.qsfl").write_bytes(old)
    assert "rolled-back" in qsfl("revoke hub", code=2).stderr
    Path("roster.qsfl").unlink()
    assert "restore it" in qsfl("revoke hub", code=2).stderr


def test_show_says_whether_a_roster_was_checked() -> None:
    federation()
    assert "NOT checked" in qsfl("show roster.qsfl").output
    assert "signed by authority" in qsfl("show roster.qsfl --authority authority.pub").output
    qsfl("authority other")
    result = qsfl("show roster.qsfl --authority other.pub", code=2)
    assert "wrong-key" in result.stderr


def test_warnings_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing for what is fresh, however short its time; both when it is nearly over."""
    qsfl("authority")
    qsfl("client alice")
    fresh = qsfl("roster --add alice.request --days 20 --roster-days 10").output
    assert "warning" not in fresh
    later = keys_cli._now() + 9 * DAY
    monkeypatch.setattr(keys_cli, "_now", lambda: later)
    output = qsfl("show roster.qsfl").output
    assert "warning: the roster will end in 1.0 days" in output
    assert "alice will end" not in output
    monkeypatch.setattr(keys_cli, "_now", lambda: later + 6 * DAY)
    assert "warning: the keys of alice will end in 5.0 days" in qsfl("show roster.qsfl").output


def test_passphrases_come_from_file_environment_or_prompt() -> None:
    qsfl("authority --passphrase-file passphrase.txt")
    qsfl("client alice", env={"QSFL_PASSPHRASE": "secret"})
    qsfl("client bob --encrypt", input="typed\ntyped\n")
    assert load_identity(Path("alice.key"), Secret(b"secret")).name == "alice"
    assert load_identity(Path("bob.key"), Secret(b"typed")).name == "bob"
    assert "set $QSFL_PASSPHRASE" in qsfl("roster --add alice.request", code=2).stderr
    wrong = qsfl("roster --add alice.request", code=2, env={"QSFL_PASSPHRASE": "wrong"})
    assert "wrong passphrase" in wrong.stderr
    qsfl("roster --add alice.request --passphrase-file passphrase.txt")
    qsfl("rotate alice.key", env={"QSFL_PASSPHRASE": "secret"})
    assert len(load_identity(Path("alice.key"), Secret(b"secret")).keys) == 2
    Path("passphrase.txt").chmod(0o644)
    assert "0644" in qsfl("show alice.key --passphrase-file passphrase.txt", code=2).stderr


def test_there_is_no_option_for_a_passphrase_on_the_command_line() -> None:
    for command in ("authority", "client", "roster", "revoke", "rotate", "show"):
        options = re.findall(r"--[a-z-]+", qsfl(f"{command} --help").output)
        assert "--passphrase" not in options
        assert "--passphrase-file" in options


def test_a_whole_federation_at_once() -> None:
    qsfl("federation keys --clients 2")
    for party in ("server", "client-0", "client-1"):
        folder = Path("keys") / party
        found = Credentials.in_folder("keys", party)
        assert found.identity.name == party == Credentials.in_folder(folder).identity.name
        assert (folder / f"{party}.key").stat().st_mode & 0o077 == 0
        assert len(found.roster.entries) == 3
    assert "not empty" in qsfl("federation keys", code=2).stderr
    with pytest.raises(KeyFileError, match="keys found: none"):
        Credentials.in_folder("keys", "client-2")


def test_two_keys_in_a_folder_are_one_too_many() -> None:
    federation()
    with pytest.raises(KeyFileError, match=r"keys found: alice.key, authority.key, hub.key"):
        Credentials.in_folder(".")


def test_a_conservative_authority() -> None:
    qsfl("authority --algorithm slh-dsa-sha2-128f")
    qsfl("client alice")
    qsfl("roster --add alice.request")
    assert opened().serial == 2
