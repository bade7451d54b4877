from __future__ import annotations

from qsfl_flower.crypto.federation import Federation, create_federation
from qsfl_flower.crypto.roster import DAY, open_roster

NOW = 1_800_000_000


def test_everybody_is_in_the_roster(federation: Federation) -> None:
    roster = open_roster(federation.roster, federation.authority)
    for name, client in federation.clients.items():
        key = client.keys[0].signing.public.key_id
        assert roster.find(name, key, "client", NOW) == client.public()
    hub = federation.server
    assert roster.find("hub", hub.keys[0].signing.public.key_id, "server", NOW) == hub.public()
    assert len(roster.entries) == 4
    assert roster.not_after == NOW + 30 * DAY


def test_keys_are_never_the_same() -> None:
    one, other = (create_federation(["a"], now=NOW) for _ in range(2))
    assert one.clients["a"].public() != other.clients["a"].public()
    assert one.authority != other.authority
