"""``qsfl keys``: the authority, its parties and their roster, as files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from qsfl_flower.crypto.enrolment import enrol, make_request, new_roster, read_request, renew
from qsfl_flower.crypto.enrolment import revoke as revoke_party
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.files import read_file, write_file
from qsfl_flower.crypto.identity import (
    Authority,
    PublicIdentity,
    create_authority,
    create_identity,
)
from qsfl_flower.crypto.keyfile import (
    describe_key_file,
    is_encrypted,
    load_authority,
    load_authority_key,
    load_identity,
    save_authority,
    save_authority_key,
    save_identity,
)
from qsfl_flower.crypto.roster import DAY, Roster, decode_roster, sign_roster
from qsfl_flower.crypto.rosterfile import accept_roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.crypto.statement import Statement
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite
from qsfl_flower.errors import QSFLError

PASSPHRASE_VARIABLE = "QSFL_PASSPHRASE"

keys_app = typer.Typer(
    help="Make and manage the keys of a federation: authority, parties, roster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Ask for a passphrase and encrypt the secret key.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help=f"File that holds the passphrase; otherwise ${PASSPHRASE_VARIABLE} or ask."),
]
AuthorityFile = Annotated[Path, typer.Option("--authority", help="The authority's secret key.")]
RosterFile = Annotated[Path, typer.Option("--roster", help="The roster.")]
RosterDays = Annotated[int, typer.Option(min=1, help="Days for which the roster may be used.")]


@keys_app.command()
def authority(
    name: Annotated[str, typer.Argument(help="Name of the authority.")] = "authority",
    out: Folder = Path(),
    algorithm: Annotated[
        str, typer.Option(help="Signature scheme; slh-dsa-sha2-128s is slow and conservative.")
    ] = DEFAULT_SUITE.signature,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Create the authority: NAME.key (keep it offline) and NAME.pub (give it to every party)."""
    with _errors():
        made = create_authority(name, algorithm)
        secret, public = out / f"{name}.key", out / f"{name}.pub"
        save_authority(secret, made, _new_passphrase(encrypt, passphrase_file))
        save_authority_key(public, made.public)
        _wrote(secret, public)
        _say(f"fingerprint  {made.public.fingerprint}")
        if not is_encrypted(secret):
            _say(f"note: {secret} has no passphrase (--encrypt): who copies it can enrol any party")


@keys_app.command()
def client(
    name: Annotated[str, typer.Argument(help="Name of the party, unique in the federation.")],
    out: Folder = Path(),
    organization: Annotated[
        str, typer.Option("--organization", "--organisation", help="Whose it is.")
    ] = "",
    server: Annotated[bool, typer.Option("--server", help="Make keys for a server.")] = False,
    kem: Annotated[str, typer.Option(help="KEM beside X25519.")] = DEFAULT_SUITE.kem,
    signature: Annotated[str, typer.Option(help="Signature scheme.")] = DEFAULT_SUITE.signature,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Create a party's keys: NAME.key (never leaves it) and NAME.request (for the authority)."""
    with _errors():
        made = create_identity(
            name,
            now=_now(),
            role="server" if server else "client",
            organization=organization,
            suite=Suite(kem, signature),
        )
        secret, request = out / f"{name}.key", out / f"{name}.request"
        save_identity(secret, made, _new_passphrase(encrypt, passphrase_file))
        write_file(request, make_request(made), private=False)
        _wrote(secret, request)
        _say(f"fingerprint  {made.public().fingerprint}")


@keys_app.command()
def roster(
    authority: AuthorityFile = Path("authority.key"),
    roster: RosterFile = Path("roster.qsfl"),
    add: Annotated[
        list[Path] | None, typer.Option(help="A request to enrol or rotate; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days for which new keys are valid.")] = 365,
    overlap_days: Annotated[
        int, typer.Option(min=0, help="Days for which rotated keys stay valid.")
    ] = 7,
    roster_days: RosterDays = 90,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign the next roster: enrol parties, carry out rotations, or just extend it."""
    with _errors():
        signer, now = _authority(authority, passphrase_file), _now()
        current = _current(roster, authority, signer, now)
        for path in add or ():
            request = read_request(read_file(path, private=False))
            current = enrol(
                current, request, now=now, not_after=now + days * DAY, overlap=overlap_days * DAY
            )
            done = "rotated" if request.rotation else "enrolled"
            _say(f"{done} {request.identity.name}  {request.identity.fingerprint}")
        _publish(
            renew(current, now=now, not_after=now + roster_days * DAY), roster, authority, signer
        )


@keys_app.command()
def federation(
    folder: Annotated[Path, typer.Argument(help="A new folder for the keys of all parties.")],
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 10,
    days: Annotated[int, typer.Option(min=1, help="Days for which the keys are valid.")] = 30,
) -> None:
    """Make the keys of a whole federation, for a simulation or a trial.

    Writes a folder for the party `server` and one for each of `client-0`, `client-1` and so on. Who
    runs this has everybody's keys, and nobody can be enrolled later: in earnest, every party makes
    its own keys and the authority signs the roster.
    """
    with _errors():
        names = [f"client-{i}" for i in range(clients)]
        made = create_federation(names, now=_now(), valid_for=days * DAY)
        made.save(folder)
        _say(f"wrote {folder}: server and {clients} clients, usable for {days} days")


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The party whose keys are to be refused.")],
    authority: AuthorityFile = Path("authority.key"),
    roster: RosterFile = Path("roster.qsfl"),
    roster_days: RosterDays = 90,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Revoke every key of a party and sign the next roster."""
    with _errors():
        signer, now = _authority(authority, passphrase_file), _now()
        changed = revoke_party(_current(roster, authority, signer, now), name, now=now)
        _publish(
            renew(changed, now=now, not_after=now + roster_days * DAY), roster, authority, signer
        )


@keys_app.command()
def rotate(
    key: Annotated[Path, typer.Argument(help="The party's secret key file.")],
    roster: RosterFile = Path("roster.qsfl"),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make new keys for a party; the old ones stay in its file until the next rotation.

    Writes the file again, under the same passphrase, and a new request beside it, for the authority
    to take with `qsfl keys roster --add`.
    """
    with _errors():
        passphrase = _passphrase(key, passphrase_file)
        party = load_identity(key, passphrase)
        data = read_file(roster, private=False)
        known = decode_roster(Statement.read(data, "roster", len(data)))
        if party.keys[0].signing.public.key_id not in {entry.key_id for entry in known.entries}:
            # The request must be signed with keys that the authority knows; these it would forget.
            raise KeyFileError(
                f"the newest keys in {key} are not in {roster} yet: have the authority enrol them "
                "before they are rotated"
            )
        made = party.rotated(_now(), party.public().suite)
        request = key.with_suffix(".request")
        # In this order: a request whose keys were lost does no harm, keys without request would.
        write_file(request, make_request(made), private=False, overwrite=True)
        save_identity(key, made, passphrase, overwrite=True)
        _wrote(key, request)
        _say(f"fingerprint  {made.public().fingerprint}")


@keys_app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A key file, a request or a roster.")],
    authority: Annotated[
        Path | None, typer.Option(help="The authority's public key, to check a roster with.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Show what a file holds; secret keys are never printed."""
    with _errors():
        data = read_file(path, private=False)
        if data.lstrip().startswith(b"{"):
            _show_key_file(path, passphrase_file)
        elif b"\x06roster" in data[:16]:
            _show_roster(data, authority)
        else:
            request = read_request(data)
            _say("rotation request" if request.rotation else "enrolment request")
            _show_party(request.identity)


def _show_key_file(path: Path, passphrase_file: Path | None) -> None:
    about = describe_key_file(path)
    encrypted = "not encrypted" if about["protection"] == "none" else "encrypted"
    _say(f"{about['kind']} {about['name']}, {encrypted}")
    if about["kind"] == "authority-public":
        public = load_authority_key(path)
        _say(f"algorithm    {public.key.algorithm}\nfingerprint  {public.fingerprint}")
    elif about["kind"] == "identity":
        party = load_identity(path, _passphrase(path, passphrase_file))
        for index, keys in enumerate(party.keys):
            _say("current keys" if index == 0 else "previous keys")
            _show_party(party.public(keys))
            _say(f"made         {_date(keys.created_at)}")


def _show_party(party: PublicIdentity) -> None:
    _say(f"name         {party.name} ({party.role})")
    _say(f"organization {party.organization or '-'}")
    _say(f"algorithms   {party.suite}")
    _say(f"signing key  {party.signing.key_id.hex()}")
    _say(f"fingerprint  {party.fingerprint}")


def _show_roster(data: bytes, authority: Path | None) -> None:
    found = decode_roster(Statement.read(data, "roster", len(data)))
    if authority is None:
        _say("signature NOT checked: give --authority FILE.pub")
    else:
        public = load_authority_key(authority)
        Statement.read(data, "roster", len(data)).verify(public.key)
        _say(f"signed by {public.name}")
    _say(f"serial {found.serial}, issued {_date(found.issued_at)}, ends {_date(found.not_after)}")
    for entry in found.entries:
        party = entry.identity
        _say(
            f"{party.name:20} {party.role:7} {entry.status:8} "
            f"{_date(entry.not_before)} to {_date(entry.not_after)}  "
            f"{entry.key_id.hex()}  {party.organization}"
        )
    for warning in found.expiring(_now()):
        _say(f"warning: {warning}")


def _authority(path: Path, passphrase_file: Path | None) -> Authority:
    return load_authority(path, _passphrase(path, passphrase_file))


def _memory(authority: Path) -> Path:
    return authority.with_suffix(".seen")


def _current(path: Path, authority: Path, signer: Authority, now: int) -> Roster:
    """Return the roster to go on from; an older copy than the last signed one is refused."""
    if path.exists():
        return accept_roster(read_file(path, private=False), signer.public, _memory(authority))
    if _memory(authority).exists():
        raise KeyFileError(
            f"{path} does not exist, but {signer.name} has signed a roster before: restore it "
            f"(or remove {_memory(authority)} to start a new one that no party will accept)"
        )
    return new_roster(now, now)


def _publish(changed: Roster, path: Path, authority: Path, signer: Authority) -> None:
    data = sign_roster(changed, signer)
    write_file(path, data, private=False, overwrite=True)
    accept_roster(data, signer.public, _memory(authority))
    _wrote(path)
    _say(f"roster {changed.serial}, usable until {_date(changed.not_after)}")
    for warning in changed.expiring(_now()):
        _say(f"warning: {warning}")


def _passphrase(path: Path, passphrase_file: Path | None) -> Secret | None:
    """Return the passphrase of an existing key file, or None if it has none."""
    if not is_encrypted(path):
        return None
    given = _given_passphrase(passphrase_file)
    if given is None and not sys.stdin.isatty():
        raise KeyFileError(
            f"{path} is encrypted: set ${PASSPHRASE_VARIABLE} or give --passphrase-file"
        )
    return given or Secret(typer.prompt(f"Passphrase of {path}", hide_input=True).encode())


def _new_passphrase(encrypt: bool, passphrase_file: Path | None) -> Secret | None:
    given = _given_passphrase(passphrase_file)
    if given is not None or not encrypt:
        return given
    text = typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True)
    return Secret(text.encode())


def _given_passphrase(passphrase_file: Path | None) -> Secret | None:
    if passphrase_file is not None:
        return Secret(read_file(passphrase_file, private=True).rstrip(b"\r\n"))
    text = os.environ.get(PASSPHRASE_VARIABLE)
    return None if text is None else Secret(text.encode())


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except QSFLError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _wrote(*paths: Path) -> None:
    _say("wrote " + ", ".join(str(path) for path in paths))


def _now() -> int:
    return int(unix_time())


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
