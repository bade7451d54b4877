"""Writing an experiment and reading it back gives the same one; it cannot be changed."""

from __future__ import annotations

import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qsfl_flower.simulations.config import (
    Experiment,
    dump_experiment,
    experiment_from_dict,
    json_schema,
    load_experiment,
    shipped_configs,
)


def positive(largest: float = 1e300, **kwargs):
    return st.floats(min_value=0, max_value=largest, exclude_min=True, **kwargs)


def below_one():
    return st.floats(min_value=0, max_value=1, exclude_max=True)


def options(required: dict, **optional):
    return st.fixed_dictionaries(required, optional=optional)


one_line = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20
)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
validate = options({"stage": st.just("validate")}, max_norm=st.none() | positive())
clip = options({"stage": st.just("clip"), "clip_norm": positive()}, per_layer=st.booleans())
gate = options({"stage": st.just("authenticate")}, encrypt=st.booleans())
stages = st.tuples(gate, validate, clip).flatmap(st.permutations) | st.lists(
    gate | validate | clip, max_size=1
)
common = {
    "stages": stages,
    "max_num_examples": st.none() | st.integers(1, 10**12),
    "max_weight_ratio": st.floats(1, 1e300),
    "min_replies": st.integers(1, 2),
    "max_failed_rounds": st.integers(1, 10**5),
}
moments = {"eta": positive(), "beta_1": below_one(), "beta_2": below_one(), "tau": positive()}
strategies = st.one_of(
    options({"name": st.just("fedavg")}, **common),
    options({"name": st.just("fedprox"), "proximal_mu": st.floats(0, 1e300)}, **common),
    options(
        {"name": st.just("fedavgm")},
        server_learning_rate=positive(),
        server_momentum=below_one(),
        **common,
    ),
    options({"name": st.just("fedadam")}, **moments, **common),
    options({"name": st.just("fedyogi")}, **moments, **common),
)
partitions = st.one_of(
    options({"scheme": st.just("iid")}),
    options({"scheme": st.just("dirichlet"), "alpha": positive()}, min_size=st.integers(1, 14)),
    options({"scheme": st.just("shards"), "shards_per_client": st.integers(1, 14)}),
)
data = st.one_of(
    options(
        {"dataset": st.sampled_from(["digits", "mnist", "fashion-mnist"])},
        root=st.none() | one_line,
        download=st.booleans(),
        test_fraction=st.floats(0.01, 0.9),
        partition=partitions,
    ),
    options({"dataset": st.just("npz"), "file": one_line}, test_fraction=st.floats(0.01, 0.9)),
)
training = {
    "epochs": st.integers(1, 1000),
    "batch_size": st.integers(1, 10**6),
    "learning_rate": positive(),
    "weight_decay": st.floats(0, 1e300),
    "grad_clip_norm": st.none() | positive(),
    "lr_decay": positive(1.0),
    "augment": st.booleans(),
    "warmup_rounds": st.integers(0, 100),
    "cosine_rounds": st.none() | st.integers(1, 100),
    "mixed_precision": st.booleans(),
}
clients = st.one_of(
    options(
        {"count": st.integers(2, 100), "fraction_train": st.just(1.0)},
        optimizer=st.just("sgd"),
        momentum=below_one(),
        **training,
    ),
    options({"optimizer": st.sampled_from(["adam", "adamw"])}, **training),
)
experiments = options(
    {},
    name=names,
    seed=st.integers(0, 2**32 - 1),
    rounds=st.integers(1, 10**5),
    data=data,
    model=options({}, name=st.sampled_from(["mlp", "a:b", "_p.q9.r:make"])),
    clients=clients,
    strategy=strategies,
    simulation=options(
        {},
        cpus_per_client=st.integers(1, 1024),
        actors=st.none() | st.integers(1, 1024),
        threads_per_client=st.integers(1, 1024),
        round_timeout=positive(),
    ),
    output=options(
        {},
        folder=one_line,
        keep_checkpoints=st.integers(1, 10**5),
        tensorboard=st.booleans(),
        mlflow=st.none() | one_line,
    ),
    faults=st.lists(
        options(
            {
                "client": st.integers(0, 1),
                "kind": st.sampled_from(["raise", "garbage", "nan", "die", "slow", "huge-claim"]),
            },
            rounds=st.just("all") | st.lists(st.integers(1, 10**5), min_size=1, max_size=3),
        ),
        max_size=3,
    ),
).filter(
    # Digits have 1,442 examples to share out; other contradictions cannot be drawn.
    lambda drawn: drawn.get("clients", {}).get("count", 10) * 14 <= 1442
)


@settings(deadline=None)
@given(experiments)
def test_file(tmp_path_factory, drawn):
    """Every valid experiment survives a file; no value is converted or lost on the way."""
    experiment = experiment_from_dict(drawn)
    path = tmp_path_factory.getbasetemp() / "experiment.yaml"
    path.write_text(dump_experiment(experiment), encoding="utf-8")
    again = load_experiment(path)
    assert again == experiment
    assert hash(again) == hash(experiment)
    assert dump_experiment(again) == dump_experiment(experiment)


@settings(deadline=None)
@given(experiments)
def test_dump_is_complete(drawn):
    """A dump has every key of the model, and the drawn values among them."""

    def keys(part):
        return {k: keys(v) for k, v in part.items()} if isinstance(part, dict) else None

    def contains(whole, part):
        if isinstance(part, dict):
            return all(key in whole and contains(whole[key], one) for key, one in part.items())
        if isinstance(part, list | tuple):
            return len(whole) == len(part) and all(map(contains, whole, part))
        return whole == part and isinstance(whole, bool) == isinstance(part, bool)

    experiment = experiment_from_dict(drawn)
    dumped = yaml.safe_load(dump_experiment(experiment))
    assert keys(dumped) == keys(experiment.model_dump(mode="json"))
    assert contains(dumped, drawn)


@settings(deadline=None)
@given(experiments)
def test_editors_accept_it(drawn):
    """The JSON Schema has no false alarm, neither for partial files nor for complete ones."""
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(json_schema())
    checker.validate(drawn)
    checker.validate(yaml.safe_load(dump_experiment(experiment_from_dict(drawn))))


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped(name, tmp_path):
    experiment = load_experiment(name)
    (tmp_path / "x.yaml").write_text(dump_experiment(experiment))
    assert load_experiment(tmp_path / "x.yaml") == experiment


def test_defaults_are_a_valid_experiment():
    assert experiment_from_dict({}) == Experiment()


def test_text_that_looks_like_something_else():
    for name in ("yes", "1e-3", "010", "12_0", "0x1f", "null", "2026-01-31", "1.5", "0o17"):
        dumped = dump_experiment(experiment_from_dict({"name": name}))
        assert yaml.safe_load(dumped)["name"] == name
        assert f"name: '{name}'" in dumped or name in ("12_0", "0o17")


def test_frozen():
    experiment = Experiment()
    for change in (
        lambda: setattr(experiment, "rounds", 3),
        lambda: setattr(experiment.clients, "count", 3),
        lambda: setattr(experiment.strategy, "stages", ()),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            change()


def test_models_are_strict_without_the_loader():
    for wrong in (
        {"rounds": "10"},
        {"rounds": 10.0},
        {"rounds": True},
        {"clients": {"learning_rate": True}},
        {"clients": {"learning_rate": float("inf")}},
        {"name": 5},
        {"unknown": 1},
        {"clients": {"optimizer": "adam", "momentum": 0.5}},
    ):
        with pytest.raises(ValidationError):
            Experiment.model_validate(wrong)


def test_names_are_safe_as_folder_names():
    allowed = set(string.ascii_letters + string.digits + "._-")
    for code in range(0x250):
        text = f"a{chr(code)}"
        try:
            Experiment(name=text)
        except ValidationError:
            assert chr(code) not in allowed
        else:
            assert chr(code) in allowed
