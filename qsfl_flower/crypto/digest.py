"""One digest for the content of a message, computed in a stream over the arrays where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from qsfl_flower.crypto.codec import Writer, byte_view
from qsfl_flower.crypto.errors import Malformed
from qsfl_flower.crypto.hybrid import PROTOCOL

if TYPE_CHECKING:
    from typing_extensions import Buffer

DIGEST_SIZE = 32


class Item(NamedTuple):
    """One named piece of a message's content.

    Parameters
    ----------
    kind : str
        What it is: ``"array"``, ``"metric"``, ``"config"`` ...
    name : str
        Unique within its kind.
    dtype : str
        Element type, as the message states it.
    shape : tuple of int
        Dimensions, as the message states them.
    data : bytes-like
        The content; any contiguous buffer, which is read in place.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffer


def content_digest(items: Iterable[Item]) -> bytes:
    """Return the SHA-256 digest of a message's content.

    ``SHA-256(label | for each item: kind | name | dtype | shape | size | data | ... | count)``,
    every field with its length. The order of the items is part of the content, since many
    receivers use arrays by position.

    Parameters
    ----------
    items : iterable of Item
        Consumed once; memory use does not grow with the content.

    Raises
    ------
    Malformed
        If two items have the same kind and name.
    """
    hasher = hashlib.sha256(PROTOCOL + b"content")
    names: set[tuple[str, str]] = set()
    for item in items:
        if (item.kind, item.name) in names:
            raise Malformed(f"the content has two {item.kind} items named {item.name!r}")
        names.add((item.kind, item.name))
        view = byte_view(item.data, f"{item.kind} item {item.name!r}")
        head = Writer()
        for text in (item.kind, item.name, item.dtype):
            head.blob(text.encode(errors="surrogatepass"))
        head.uint(len(item.shape), 1)
        for size in item.shape:
            head.uint(size, 8)
        hasher.update(head.uint(len(view), 8).done())
        hasher.update(view)
    hasher.update(len(names).to_bytes(8, "big"))
    return hasher.digest()
