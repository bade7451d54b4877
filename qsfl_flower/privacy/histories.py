"""Accountants by what was charged, so that accounts with the same charges share one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from weakref import WeakValueDictionary

from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.events import AnyEvent, event_from_dict


@dataclass(frozen=True, eq=False)
class History:
    """What was charged to an account: the digest of all charges, and what they come to."""

    digest: bytes
    accountant: Accountant


class Histories:
    """All histories that somebody holds on to."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, History] = WeakValueDictionary()

    def after(
        self, before: History | None, charges: Sequence[str], planned: Sequence[AnyEvent] = ()
    ) -> History:
        """Return what follows a history, or the beginning, after more charges.

        Parameters
        ----------
        before : History or None
            What was charged earlier.
        charges : sequence of str
            The events of each further release, as JSON.
        planned : sequence of Event or PureEvent
            What is to follow, see `Accountant`.
        """
        if before is not None and not charges:
            return before
        digest = b"" if before is None else before.digest
        for text in charges:
            digest = sha256(digest + text.encode()).digest()
        if (found := self._known.get(digest)) is not None:
            return found
        events = [event_from_dict(values) for text in charges for values in json.loads(text)]
        if before is None:
            accountant = Accountant(events, [*events, *planned] if planned else ())
        else:
            accountant = before.accountant
            for event in events:
                accountant = accountant.with_event(event)
        found = self._known[digest] = History(digest, accountant)
        return found
