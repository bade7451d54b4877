"""The smallest federations: those of the table work, one client fewer is refused at once."""

from __future__ import annotations

import pytest

from qsfl_flower.errors import ConfigError, TooFewReplies
from qsfl_flower.secure.sizes import fewest_clients
from qsfl_flower.stages import Committee, SecureKrum, SecureSum
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire import to_record

from . import sizes
from .conftest import MODEL, NOW, Recorder


def test_the_table_of_the_page_is_up_to_date():
    assert sizes.whole_page() == sizes.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("members", "threshold", "byzantine"),
    [(3, 2, None), (5, 3, None), (3, 2, 0), (3, 2, 1), (5, 3, 1), (5, 3, 2), (7, 3, 2)],
)
def test_the_smallest_federation_opens_a_sum_and_one_client_fewer_is_refused(
    federation, members, threshold, byzantine
):
    sums = Committee(members, threshold)

    def strategy():
        stage = (
            SecureSum(4.0, sums, clock=lambda: NOW)
            if byzantine is None
            else SecureKrum(4.0, byzantine, sums, clock=lambda: NOW)
        )
        return StableFedAvg(
            stages=[federation.gate, stage], fraction_evaluate=0.0, observer=Recorder()
        )

    least = fewest_clients(members, sums.min_clients, byzantine)
    made = strategy()
    assert made.min_train_nodes == least
    made.start(federation(least)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
    assert made.engine.observer.rounds[-1].skipped is None
    with pytest.raises(TooFewReplies, match=f"stage secure_.* = {least}"):
        strategy().start(federation(least - 1)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
    # A strategy that asks fewer, as some selection may, says in round 1 how many it takes.
    small = strategy()
    small.min_train_nodes, small.fraction_train = 2, (least - 0.5) / (least + 1)
    with pytest.raises(ConfigError, match=f"the smallest federation has {least}"):
        small.start(federation(least)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
