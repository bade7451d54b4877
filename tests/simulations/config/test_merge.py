"""What `extends` and overrides do, and where their errors point."""

from __future__ import annotations

from decimal import Decimal

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import (
    DirichletSpec,
    FedAdamSpec,
    FedAvgSpec,
    IidSpec,
    experiment_from_dict,
    load_experiment,
)
from qsfl_flower.simulations.config.strategy import SECTIONS


def message(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


def test_sections_merge_and_lists_replace(write):
    write(
        base="""
            rounds: 5
            clients: {count: 4, epochs: 2}
            strategy: {min_replies: 3, stages: [{stage: validate}, {stage: clip, clip_norm: 1}]}
            faults: [{client: 1, kind: nan}]
        """,
        case="""
            extends: base
            clients: {epochs: 7}
            strategy: {stages: [{stage: clip, clip_norm: 9}]}
        """,
    )
    experiment = load_experiment("case.yaml")
    assert (experiment.rounds, experiment.clients.count, experiment.clients.epochs) == (5, 4, 7)
    assert experiment.strategy.stages == (SECTIONS["clip"](stage="clip", clip_norm=9.0),)
    assert experiment.strategy.min_replies == 3
    assert [fault.client for fault in experiment.faults] == [1]


def test_later_bases_win_and_the_file_wins_over_all(write):
    write(
        a="rounds: 1\nseed: 1\nname: a\n",
        b="seed: 2\nname: b\n",
        case="extends: [a, ./b.yaml]\nname: case\n",
    )
    experiment = load_experiment("case.yaml")
    assert (experiment.rounds, experiment.seed, experiment.name) == (1, 2, "case")


def test_bases_of_bases_relative_to_their_file(write, here):
    (here / "deep").mkdir()
    (here / "deep" / "one.yaml").write_text("extends: two\nseed: 1\n")
    (here / "deep" / "two.yaml").write_text("seed: 2\nrounds: 2\n")
    write(case="extends: deep/one.yaml\n")
    experiment = load_experiment("case.yaml")
    assert (experiment.seed, experiment.rounds) == (1, 2)


def test_the_same_base_on_two_ways_is_fine(write):
    write(a="rounds: 3\n", b="extends: a\n", c="extends: a\n", case="extends: [b, c]\n")
    assert load_experiment("case.yaml").rounds == 3


def test_shipped_base_and_absolute_path(write, here):
    write(case="extends: quickstart\n", other=f"extends: {here / 'case.yaml'}\n")
    assert load_experiment("case.yaml") == load_experiment("quickstart")
    assert load_experiment("other.yaml") == load_experiment("quickstart")


def test_new_kind_forgets_keys_of_the_old_kind_only(write):
    write(
        base="""
            data: {partition: {scheme: dirichlet, alpha: 0.3}}
            strategy: {name: fedadam, eta: 0.5, tau: 0.1, min_replies: 4}
        """,
        case="""
            extends: base
            data: {partition: {scheme: iid}}
            strategy: {name: fedyogi}
        """,
        same="extends: base\ndata: {partition: {scheme: dirichlet, min_size: 3}}\n",
    )
    experiment = load_experiment("case.yaml")
    assert experiment.data.partition == IidSpec(scheme="iid")
    assert experiment.strategy.model_dump(include={"name", "eta", "tau", "min_replies"}) == {
        "name": "fedyogi",
        "eta": 0.5,  # both kinds have it
        "tau": 0.1,
        "min_replies": 4,
    }
    assert load_experiment("case.yaml", ["strategy.name=fedavg"]).strategy == FedAvgSpec(
        name="fedavg", min_replies=4
    )
    assert load_experiment("same.yaml").data.partition == DirichletSpec(
        scheme="dirichlet", alpha=0.3, min_size=3
    )


def test_a_key_of_no_kind_is_not_forgotten(write):
    write(
        base="strategy: {name: fedadam, etta: 0.5}\n",
        case="extends: base\nstrategy: {name: fedavg}\n",
    )
    assert message("case.yaml").startswith(
        "base.yaml:1: strategy.etta: unknown key for name 'fedavg'; allowed: name, "
    )


def test_kind_may_come_from_another_file_than_its_keys(write):
    write(
        base="data: {partition: {alpha: 0.3}}\n",
        case="extends: base\ndata: {partition: {scheme: dirichlet}}\n",
    )
    assert load_experiment("case.yaml").data.partition.alpha == 0.3


def test_null_resets(write):
    write(
        base="clients: {grad_clip_norm: 1}\nstrategy: {max_num_examples: 5}\n",
        case="extends: base\nclients: {grad_clip_norm: null}\n",
    )
    experiment = load_experiment("case.yaml", ["strategy.max_num_examples=null"])
    assert experiment.clients.grad_clip_norm is None
    assert experiment.strategy.max_num_examples is None


def test_errors_point_into_the_file_that_has_the_value(write):
    write(
        base="seed: -1\n",
        middle="extends: base\nclients:\n  epochs: 0\n",
        case="name: a b\nextends: middle\n",
    )
    assert message("case.yaml", "rounds=0").split("\n") == [
        "case.yaml:1: name: must be 1 to 64 letters, digits, '.', '_' or '-', starting with a "
        "letter or digit, got 'a b'",
        "middle.yaml:3: clients.epochs: must be a whole number from 1 to 1000, got 0 "
        "(extended by case.yaml)",
        "base.yaml:1: seed: must be a whole number from 0 to 4294967295, got -1 "
        "(extended by middle.yaml, case.yaml)",
        "--set rounds=0: rounds: must be a whole number from 1 to 100000, got 0",
    ]


def test_a_value_that_is_replaced_is_not_an_error(write):
    write(base="rounds: 0\n", case="extends: base\nrounds: 3\n")
    assert load_experiment("case.yaml").rounds == 3
    assert load_experiment("base.yaml", ["rounds=4"]).rounds == 4


def test_contradiction_points_at_what_somebody_wrote(write):
    """Of the two keys, the default one has no place."""
    write(
        base="data:\n  test_fraction: 0.1\n",
        case="extends: base\nclients: {fraction_evaluate: 1}\n",
    )
    assert load_experiment("case.yaml").clients.fraction_evaluate == 1
    assert message("case.yaml", "data.test_fraction=0").startswith(
        "case.yaml:2: clients.fraction_evaluate: "
    )


def test_broken_bases(write, here):
    (here / "folder").mkdir()
    (here / "latin.yaml").write_bytes(b"\xe9")
    write(
        bad="rounds: [\n",
        empty="",
        listed="- 1\n",
        case="rounds: 3\nextends:\n  - ./gone-for-good.yml\n",
        to_folder="extends: folder/\n",
        to_latin="extends: latin\n",
        to_bad="extends: bad\n",
        to_empty="extends: empty\n",
        to_list="extends: listed\n",
        typo="extends: baad\n",
    )
    assert message("case.yaml") == "case.yaml:3: extends: './gone-for-good.yml': no such file"
    assert message("to_folder.yaml") == (
        "to_folder.yaml:1: extends: 'folder/': is a folder, not a file; it holds no YAML files"
    )
    assert message("to_latin.yaml") == (
        "to_latin.yaml:1: extends: 'latin': is not UTF-8 text: byte 0xe9 at offset 0"
    )
    assert message("to_bad.yaml") == (
        "bad.yaml:2: not valid YAML: while parsing a flow node: expected the node content, but "
        "found '<stream end>' (extended by to_bad.yaml)"
    )
    assert message("to_empty.yaml") == (
        "empty.yaml:1: the file is empty; a first line could be 'extends: quickstart' "
        "(extended by to_empty.yaml)"
    )
    assert message("to_list.yaml").startswith("listed.yaml:1: the top level must be a mapping ")
    assert message("typo.yaml").startswith(
        "typo.yaml:1: extends: 'baad': no such configuration; did you mean 'bad'? shipped: "
    )


def test_circles(write, here):
    write(a="extends: b\n", b="extends: c\n", c="rounds: 3\nextends: [a]\n")
    assert message("a.yaml") == (
        "c.yaml:2: extends: 'a': goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml "
        "(extended by b.yaml, a.yaml)"
    )
    (here / "link.yaml").symlink_to("d.yaml")
    write(d="extends: link\n")
    assert message("d.yaml") == ("d.yaml:1: extends: 'link': goes in a circle: d.yaml -> link.yaml")


def test_too_many_files(write):
    write(**{f"f{i}": f"extends: [f{i + 1}, f{i + 1}]\n" for i in range(40)}, f40="rounds: 1\n")
    assert "makes more than 50 files" in message("f0.yaml")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("clients.count=5", ("clients", "count"), 5),
        (" clients . count = 5", ("clients", "count"), 5),
        ("clients={count: 5, epochs: 3}", ("clients", "count"), 5),
        ("name=yes", ("name",), "yes"),
        ("output.mlflow=http://host:5000/a=b", ("output", "mlflow"), "http://host:5000/a=b"),
        ("output.mlflow=null", ("output", "mlflow"), None),
        ("clients.learning_rate=1e-3", ("clients", "learning_rate"), 0.001),
        ("clients.augment=true", ("clients", "augment"), True),
        ("data.root='~/my data'", ("data", "root"), "~/my data"),
    ],
)
def test_override(override, key, value, write):
    write(case="name: x\n")
    found = load_experiment("case.yaml", [override])
    for part in key:
        found = getattr(found, part)
    assert found == value


def test_overrides_of_lists(write):
    write(case="strategy: {stages: [{stage: validate}, {stage: clip, clip_norm: 1}]}\n")

    def stages(*overrides: str):
        return load_experiment("case.yaml", overrides).strategy.stages

    clip = SECTIONS["clip"](stage="clip", clip_norm=2.0)
    validate = SECTIONS["validate"](stage="validate")
    assert stages("strategy.stages.1.clip_norm=2") == (validate, clip)
    assert stages("strategy.stages=[{stage: clip, clip_norm: 2}]") == (clip,)
    assert stages("strategy.stages=[]") == ()
    assert stages("strategy.stages.1={per_layer: true}") == (
        validate,
        SECTIONS["clip"](stage="clip", clip_norm=1.0, per_layer=True),
    )
    assert stages("strategy.stages.1={stage: validate}", "strategy.stages.0=" "{stage: clip}",
                  "strategy.stages.0.clip_norm=2") == (clip, validate)  # fmt: skip


def test_later_overrides_win(write):
    write(case="rounds: 1\n")
    assert load_experiment("case.yaml", ["rounds=2", "rounds=3"]).rounds == 3


def test_overrides_of_defaults(write):
    """What no file names can be changed too, by index where it is a list."""
    write(case="name: x\n")
    experiment = load_experiment(
        "case.yaml",
        [
            "strategy.stages.0.max_norm=3",
            "data.partition.scheme=dirichlet",
            "data.partition.alpha=1",
            "strategy={name: fedadam}",
        ],
    )
    assert experiment.strategy == FedAdamSpec(
        name="fedadam", stages=(SECTIONS["validate"](stage="validate", max_norm=3.0),)
    )
    assert experiment.data.partition == DirichletSpec(scheme="dirichlet", alpha=1.0)


def test_dict_has_no_extends_and_names_its_source():
    with pytest.raises(ConfigError) as caught:
        experiment_from_dict({"extends": "base", "rounds": 0, 5: 6}, source="notebook")
    assert str(caught.value).split("\n") == [
        "notebook: rounds: must be a whole number from 1 to 100000, got 0",
        "notebook: extends: unknown key; 'extends' stands at the top level of a file only; "
        "allowed: name, seed, plugins, rounds, data, model, clients, strategy, evaluation, "
        "personalization, devices, timing, simulation, output, attacks, faults",
        "notebook: 5: unknown key; allowed: name, seed, plugins, rounds, data, model, clients, "
        "strategy, evaluation, personalization, devices, timing, simulation, output, attacks, "
        "faults, extends",
    ]


def test_dict_of_anything():
    loop: dict[str, object] = {}
    loop["clients"] = loop
    for data, expected in (
        (loop, "dict: nested deeper than 24 levels"),
        ([1], "dict: the top level must be a mapping with keys "),
        ({"rounds": 10**5000}, "dict: rounds: must be a whole number from 1 to 100000, got <int>"),
        ({"rounds": Decimal(3)}, "dict: rounds: must be plain data as in a file, got <Decimal>"),
        ({"faults": {1, 2}}, "dict: faults: must be plain data as in a file, got <set>"),
        ({"faults": [{"kind": b"x"}]}, "dict: faults.0.kind: must be plain data as in a file, "),
    ):
        with pytest.raises(ConfigError) as caught:
            experiment_from_dict(data)
        assert str(caught.value).startswith(expected)


def test_very_many_mistakes_are_counted(write):
    write(case="".join(f"k{i}: 1\n" for i in range(80)))
    lines = message("case.yaml").split("\n")
    assert len(lines) == 51
    assert lines[0].startswith("case.yaml:1: k0: unknown key")
    assert lines[-1] == "case.yaml: 30 more mistakes are not listed"


def test_very_deep_override(write):
    write(case="rounds: 3\n")
    override = "a." * 5000 + "a="
    assert message("case.yaml", override).endswith(": nested deeper than 24 levels")
    assert len(message("case.yaml", override)) < 200
