"""A node's policy file: read strictly, and what it refuses of the terms of a sum."""

from contextlib import suppress
from dataclasses import replace

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.node.policy import NodePolicy, insisting, policy_of
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.secure.terms import Terms
from qsfl_flower.simulations.cli import app
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.privacy import policy_of as policy_of_experiment

TERMS = Terms(
    run=1, round=1, members=tuple("abcde"), seats=tuple("12345"), threshold=3, quorum=4,
    min_clients=4, max_clients=12, bits=20, bound=5.0, clip_norm=5.0,
)  # fmt: skip

FILE = """
least_cohort = 5
openings = ["sum"]
servers = ["head-office"]
releases = 100
days = 30

[privacy]
epsilon = 2
placements = ["record", "distributed"]
"""


def node(**config):
    return Context(1, 99, config, RecordDict(), {})


def test_the_file_is_read(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    assert policy_of(node(**{"qsfl-policy": str(path)})) == NodePolicy(
        least_cohort=5,
        hidden_only=True,  # an update in the clear is no sum of five
        openings=("sum",),
        servers=("head-office",),
        releases=100,
        days=30.0,
        privacy=MinimumPolicy(epsilon=2.0, placements=("record", "distributed")),
    )


def test_single_settings_count_before_the_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    config = {"qsfl-policy": str(path), "qsfl-min-cohort": 7, "qsfl-min-threshold": 4}
    policy = policy_of(node(**config, **{"qsfl-max-colluding": 0.2}))
    assert (policy.least_cohort, policy.least_threshold, policy.colluding) == (7, 4, 0.2)


def test_an_app_and_a_single_setting_take_nothing_from_each_other(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("releases = 100\ndays = 30\n")
    for file in ({}, {"qsfl-policy": str(path)}):
        context = node(**file, **{"qsfl-min-cohort": 5})
        for own, cohort in ((NodePolicy(), 5), (NodePolicy(least_cohort=10), 10)):
            policy = policy_of(context, own)
            assert (policy.least_cohort, policy.forgets) == (cohort, True)
    kept = NodePolicy(hidden_only=True, kept_state=True)
    assert not policy_of(node(), kept).and_also(NodePolicy()).forgets


def test_without_a_file_the_defaults_hold():
    assert policy_of(node()) == NodePolicy()
    assert policy_of(node(**{"qsfl-min-cohort": 2})) == NodePolicy(least_cohort=2, hidden_only=True)


def test_an_outer_mod_counts_before_the_file(tmp_path):
    with insisting(NodePolicy(least_cohort=9)):
        assert policy_of(node(**{"qsfl-policy": str(tmp_path / "none")})).least_cohort == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("least_cohort = 1", "least_cohort is 1; it must be an integer >= 2"),
        ("least_cohort = true", "least_cohort is True; it must be int"),
        ("least_cohrt = 4", "unknown key least_cohrt; allowed are hidden_only"),
        ('openings = ["sum", "all"]', "it must be a list out of sum, norms, distances"),
        ("openings = 3", "openings must be a list of texts"),
        ("releases = 3", "it must be given with releases"),
        ("[privacy]\nepsilon = -1", "epsilon is -1.0; it must be a number > 0"),
        ("[privacy]\nepsilon = 1\nsigma = 2", "unknown key privacy.sigma"),
        ("privacy = 3", "privacy must be a table"),
        ("[privacy]", "privacy.epsilon is missing"),
        ("a = [", "is not TOML"),
        ("x" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, says):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        NodePolicy.load(path)
    assert says in str(error.value)
    assert "policy.toml" in str(error.value)


@given(st.binary(max_size=60))
def test_any_file_is_a_policy_or_an_error_of_ours(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("policy") / "p.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        NodePolicy.load(path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"qsfl-policy": "relative.toml"}, "give an absolute path"),
        ({"qsfl-policy": "/no/such/file"}, "cannot be read"),
        ({"qsfl-min-cohort": "many"}, "must be a int"),
        ({"qsfl-max-colluding": True}, "must be a float"),
    ],
)
def test_a_bad_node_config_is_named(config, says):
    with pytest.raises(ConfigError, match=says):
        policy_of(node(**config))


@pytest.mark.parametrize(
    ("terms", "policy", "reason"),
    [
        ({"min_clients": 2}, {}, "policy-cohort"),
        ({"min_clients": 3}, {"least_cohort": 4}, "policy-cohort"),
        ({"threshold": 2}, {"least_threshold": 3}, "policy-threshold"),
        ({"bits": 8}, {}, "policy-bits"),
        ({"weights": (64, 1)}, {"window": 2}, "policy-weights"),
        ({"weights": (1, 1)}, {}, "policy-window"),
        ({"distances": True}, {"openings": ("sum",)}, "policy-openings"),
        ({"norms": True}, {"openings": ("sum", "distances")}, "policy-openings"),
        ({}, {"members": ("a", "b", "c", "d")}, "policy-committee"),
    ],
)
def test_terms_that_protect_less_are_refused(terms, policy, reason):
    with pytest.raises(Refusal) as refusal:
        NodePolicy(**policy).check_terms(replace(TERMS, **terms))
    assert refusal.value.reason == reason


@pytest.mark.parametrize("opened", ["distances", "norms"])
def test_shares_of_noise_go_with_nothing_but_a_sum(opened):
    terms = replace(TERMS, **{opened: True})
    NodePolicy().check_terms(terms)
    with pytest.raises(Refusal, match="policy-openings"):
        NodePolicy().check_terms(terms, noisy=True)


def test_honest_terms_pass():
    NodePolicy().check_terms(TERMS)
    NodePolicy(window=3).check_terms(replace(TERMS, weights=(1, 1, 1)))
    NodePolicy(weights=True, window=3).check_terms(replace(TERMS, weights=(4, 2, 1)))


def test_a_policy_is_explained(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    shown = CliRunner().invoke(app, ["explain", "--node", str(path)])
    assert shown.exit_code == 0
    for part in ("at most epsilon = 2", "fewer than 5 clients", "head-office", "open sum of"):
        assert part in shown.output
    path.write_text("least_cohort = 0")
    assert "least_cohort is 0" in CliRunner().invoke(app, ["explain", "--node", str(path)]).output


def test_experiments_say_it_in_yaml():
    changes = ["clients.policy.weights=true", "clients.policy.openings=[sum]"]
    told = policy_of_experiment(load_experiment("plain", changes))
    assert told == NodePolicy(weights=True, openings=("sum",))


def test_a_cohort_is_no_cohort_in_the_clear():
    assert NodePolicy(least_cohort=5).hidden_only
    assert not NodePolicy().hidden_only
    assert not NodePolicy(least_cohort=5, hidden_only=False).hidden_only
    told = policy_of_experiment(load_experiment("plain", ["clients.policy.least_cohort=4"]))
    assert told.hidden_only


def test_two_policies_allow_what_both_allow(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    own = NodePolicy(
        openings=("norms", "sum"), window=3, weights=True, releases=7, days=2.0,
        servers=("head-office", "branch"), privacy=MinimumPolicy(epsilon=3.0),
    )  # fmt: skip
    both = policy_of(node(**{"qsfl-policy": str(path)}), own)
    file = NodePolicy.load(path)
    assert both == replace(file, releases=7, metrics=("num-examples",))
    assert both == own.and_also(file)
    assert policy_of(node(), own) == own
    with pytest.raises(ConfigError, match="no name in common"):
        own.and_also(NodePolicy(servers=("other",)))
