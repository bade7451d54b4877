"""Checkpoints of a client's training: whole or absent, checked, bounded, and private.

A checkpoint is one file, written beside its place and renamed: a line with the SHA-256 of the rest,
a line of JSON, and a safetensors body. With a key the body is encrypted (AES-256-GCM under a key
that is derived for this one file) and the JSON line is authenticated with it. Nothing is pickled.

Who sees what: a body holds the model in training, which tells about the owner's data. Files are
readable by their owner only; on a device that others can read, give the client's storage key.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from qsfl_flower.crypto.files import read_file, write_file
from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError, CryptoError

log = logging.getLogger("qsfl_flower")

FORMAT = 1
_VALUES = "values.json"
_SALT = 16
_NONCE = bytes(12)  # each file has a key of its own
_MAX_HEADER = 4096
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, SafetensorError, InvalidTag, CryptoError,
    RecursionError,
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class ClientCheckpoint:
    """Where a client's training stood.

    Parameters
    ----------
    server_round : int
        The round whose instruction it works on.
    version : str
        Digest of the model that the server sent.
    step : int
        Batches done.
    arrays : Mapping[str, numpy.ndarray]
        What `LocalTraining.save` returned, and the model that the server sent under ``base/``.
    values : Mapping[str, Any]
        JSON values beside them.
    """

    server_round: int
    version: str
    step: int
    arrays: Mapping[str, NDArray[Any]]
    values: Mapping[str, Any] = field(default_factory=dict)


class ClientCheckpoints:
    """The checkpoints of one client in a folder of its own.

    Parameters
    ----------
    folder : Path
        Created when needed.
    owner : str
        Identifies client, data and settings; checkpoints of other owners are passed over.
    keep : int
        How many stay, >= 1.
    max_bytes : int
        Room for all of them together, > 0; a larger checkpoint is not written.
    key : Secret, optional
        Encrypts them: the ``storage`` key of the client's identity.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> store = ClientCheckpoints(Path(mkdtemp()), owner="client-0", keep=2)
    >>> store.latest(server_round=5, max_staleness=2) is None  # nothing is saved yet
    True
    """

    def __init__(
        self,
        folder: Path,
        *,
        owner: str = "",
        keep: int = 2,
        max_bytes: int = 1 << 30,
        key: Secret | None = None,
    ) -> None:
        if keep < 1 or max_bytes < 1:
            raise ConfigError(f"keep is {keep} and max_bytes {max_bytes}; both must be at least 1")
        self.folder, self.owner, self.keep, self.max_bytes = folder, owner, keep, max_bytes
        self._key = key

    def save(self, checkpoint: ClientCheckpoint) -> bool:
        """Write a checkpoint and remove the oldest; False, with a warning, if it cannot be written.

        Training goes on without it: a full disk costs the chance to resume, not the round.
        """
        arrays = {k: np.asarray(v, order="C") for k, v in checkpoint.arrays.items()}
        arrays[_VALUES] = np.frombuffer(json.dumps(checkpoint.values).encode(), dtype=np.uint8)
        body = save_tensors(arrays)
        salt = random_bytes(_SALT, "client checkpoint").hex()
        header = {
            "format": FORMAT,
            "owner": self.owner,
            "round": checkpoint.server_round,
            "version": checkpoint.version,
            "step": checkpoint.step,
            "salt": None if self._key is None else salt,
        }
        line = json.dumps(header, sort_keys=True).encode()
        if self._key is not None:
            body = _cipher(self._key, salt).encrypt(_NONCE, body, line)
        rest = line + b"\n" + body
        if len(rest) > self.max_bytes:
            log.warning("checkpoint: %d bytes, at most %d allowed", len(rest), self.max_bytes)
            return False
        name = f"round-{checkpoint.server_round:06d}-step-{checkpoint.step:09d}.ckpt"
        digest = hashlib.sha256(rest).hexdigest().encode()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(self.folder / name, digest + b"\n" + rest, private=True, overwrite=True)
        except (OSError, CryptoError) as error:
            log.warning("checkpoint: not written: %s", error)
            return False
        self._trim()
        return True

    def latest(self, server_round: int, max_staleness: int) -> ClientCheckpoint | None:
        """Return the newest usable checkpoint, or None.

        One that is damaged or somebody else's is passed over with a warning; one of a later round,
        or of more than `max_staleness` rounds ago, is discarded.
        """
        for path in reversed(self._files()):
            try:
                checkpoint = self._load(path)
            except _DAMAGE as error:
                why = str(error) or type(error).__name__
                log.warning("checkpoint %s is not usable: %s", path.name, why)
                continue
            if 0 <= server_round - checkpoint.server_round <= max_staleness:
                return checkpoint
            log.info("checkpoint %s is out of date in round %d", path.name, server_round)
            path.unlink(missing_ok=True)
        return None

    def clear(self) -> None:
        """Remove all checkpoints: training is finished."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.ckpt"))

    def _trim(self) -> None:
        """Keep the newest within both bounds, and no leftovers of interrupted writes."""
        for left in self.folder.glob(".round-*.ckpt.*"):
            left.unlink(missing_ok=True)
        room = self.max_bytes
        for number, path in enumerate(reversed(self._files())):
            room -= path.stat().st_size
            if number >= self.keep or (number > 0 and room < 0):
                path.unlink(missing_ok=True)

    def _load(self, path: Path) -> ClientCheckpoint:
        if path.stat().st_size > self.max_bytes + 65:
            raise ValueError(f"more than {self.max_bytes} bytes")
        digest, _, rest = read_file(path, private=True).partition(b"\n")
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            raise ValueError("its checksum is wrong")
        line, _, body = rest.partition(b"\n")
        if len(line) > _MAX_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}; this release reads {FORMAT}")
        if header["owner"] != self.owner:
            raise ValueError("it belongs to another client, data set or configuration")
        if (header["salt"] is None) != (self._key is None):
            raise ValueError("it is encrypted and there is no key, or the other way round")
        if self._key is not None:
            body = _cipher(self._key, header["salt"]).decrypt(_NONCE, body, line)
        arrays = load_tensors(body)
        values = json.loads(arrays.pop(_VALUES).tobytes())
        return ClientCheckpoint(
            int(header["round"]), str(header["version"]), int(header["step"]), arrays, values
        )


def _cipher(key: Secret, salt: str) -> AESGCM:
    return AESGCM(derive(key, b"client checkpoint", bytes.fromhex(salt)).reveal())
