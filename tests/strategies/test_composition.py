"""What goes together does so when it runs; what does not is refused; the page says the same."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.client import NumPyClient
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.errors import CompositionError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.rounds.composition import REFUSALS, Argument, Refusal, Trait, refuse
from qsfl_flower.strategies import BufferedAsync, StableFedAvg
from qsfl_flower.testing import LocalGrid
from tests.strategies.support import (
    ASYNCHRONOUS,
    CAPABILITIES,
    COMPANIONS,
    NAMES,
    PAGE,
    keys,
    refused_sets,
    stages_of,
    whole_page,
    why_refused,
)

SIZE = 40
OPTIMUM = np.linspace(-1, 1, SIZE)
REFUSED = refused_sets()
SOUND = [pair for pair in combinations(CAPABILITIES, 2) if frozenset(pair) not in REFUSED]


class Pull(NumPyClient):
    """Goes half of the way to an optimum of its own, near the common one."""

    def __init__(self, client):
        shift = np.random.default_rng(client).normal(0, 0.05, SIZE)
        self.own = (OPTIMUM + shift).astype(np.float32)

    def fit(self, parameters, config):
        ((x,),) = (parameters,)
        told = {"noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_rate": 0.1, "steps": 1}
        metrics = {f"dp-{name.replace('_', '-')}": value for name, value in told.items()}
        return [x + 0.5 * (self.own - x)], 100, {"train-loss": 1.0, **metrics}


def federation(names, rounds):
    """Run capabilities together; return the distance to the optimum over that at the start."""
    made, roster = keys()
    needed = {*names, *(c for n in names for c in COMPANIONS.get(n, ()))}

    def credentials(context):
        name = NAMES[int(context.node_config["partition-id"])]
        return Credentials(made.clients[name], roster)

    mods = [auth_mod(credentials), qsfl_mod] if "authenticate" in needed else [qsfl_mod]
    kind = StableFedAvg
    options = {}
    if ASYNCHRONOUS in names:
        if needed & {"secure_sum", "secure_krum"}:  # nodes have to allow sums over several rounds
            mods.insert(1, policy_mod(NodePolicy(window=3)))
        kind, options = BufferedAsync, {"buffer_size": 6, "concurrency": 7, "max_staleness": 2}
    strategy = kind(
        fraction_evaluate=0.0, stages=stages_of(names), min_available_nodes=7, seed=3, **options
    )
    app = numpy_client_app(lambda context: Pull(context.node_config["partition-id"]), mods=mods)
    start = ArrayRecord({"0": Array(np.zeros(SIZE, np.float32))})
    result = strategy.start(LocalGrid(app, 7), start, rounds, timeout=30)
    x = result.arrays["0"].numpy()
    return np.linalg.norm(x - OPTIMUM) / np.linalg.norm(OPTIMUM)


def sound_sets():
    """Return few sets that are not refused and hold all sound pairs: greedily, largest first."""
    left, found = {frozenset(pair) for pair in SOUND}, []

    def gain(name, names):
        if name in names or any(group <= {*names, name} for group in REFUSED):
            return 0
        return sum(frozenset({name, other}) in left for other in names)

    def grow(pair):
        names = set(pair)
        while gain(best := max(CAPABILITIES, key=lambda name: gain(name, names)), names):
            names.add(best)
        return names

    while left:
        grown = map(grow, sorted(map(sorted, left)))
        found.append(max(grown, key=lambda names: sum(pair <= names for pair in left)))
        left = {pair for pair in left if not pair <= found[-1]}
    return [[name for name in CAPABILITIES if name in names] for names in found]


@pytest.mark.parametrize(
    "names",
    [*sound_sets(), *(pytest.param(pair, marks=pytest.mark.slow) for pair in SOUND)],
    ids="+".join,
)
def test_what_is_not_refused_converges(names):
    # Random are the central and the local noise, of norm 0.02 and 0.03 per round: 1 in 10^9.
    assert federation(names, rounds=12) < 0.5


def test_every_sound_pair_is_in_a_set():
    assert {p for names in sound_sets() for p in combinations(names, 2)} == set(SOUND)


def test_the_page_shows_what_is_refused():
    assert PAGE.read_text(encoding="utf-8") == whole_page(), (
        "run python -m tests.strategies.support"
    )


@given(st.sets(st.sampled_from(sorted(CAPABILITIES)), min_size=4))
def test_larger_sets_are_refused_for_their_pairs_and_triples_alone(names):
    assert (why_refused(sorted(names)) is not None) == any(group <= names for group in REFUSED)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: "+".join(t.name for t in r.together))
def test_every_refusal_is_needed(refusal):
    parts = [Argument(f"part{i}", frozenset({t})) for i, t in enumerate(refusal.together)]
    assert list(refusal.found(parts))
    with pytest.raises(CompositionError) as told:
        refuse(parts)
    assert any(part.name in str(told.value) for part in parts)
    others = [r for r in REFUSALS if r is not refusal]
    assert not any(list(r.found(parts)) for r in others), "another refusal says the same"


def test_one_part_does_not_meet_itself():
    both = Argument("both", frozenset({Trait.COMBINES, Trait.HIDES_UPDATES, Trait.SEES_UPDATES}))
    refuse([both])
    refuse([both, Argument("other", frozenset({Trait.FLAT}))])


def test_three_traits_and_an_exception():
    traits = (Trait.FLAT, Trait.CUTS_OFF, Trait.ENCODES)
    parts = [Argument(t.name, frozenset({t})) for t in traits]
    rule = Refusal(traits, "{0} {1} {2}", unless=Trait.PROVES_NAMES)
    assert [tuple(p.name for p in found) for found in rule.found(parts)] == [
        ("FLAT", "CUTS_OFF", "ENCODES")
    ]
    assert not list(rule.found([*parts, Argument("gate", frozenset({Trait.PROVES_NAMES}))]))
    assert not list(rule.found(parts[:2]))
