"""The values of an experiment that cannot go together across its sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qsfl_flower import plugins
from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.sizes import fewest_clients
from qsfl_flower.simulations.config.asynchronous import ConstantSpec
from qsfl_flower.simulations.config.base import Contradiction
from qsfl_flower.simulations.config.clashes import clashes
from qsfl_flower.simulations.config.data import (
    LOSSES,
    DirichletSpec,
    IidSpec,
    NaturalSpec,
    WriterSpec,
)
from qsfl_flower.simulations.config.described import option_problems, parameters_of
from qsfl_flower.simulations.config.extended import built_in
from qsfl_flower.simulations.config.strategy import (
    FedAsyncSpec,
    FedBuffSpec,
)
from qsfl_flower.simulations.config.whole import Sections

# Training examples at most; local copies may hold fewer.
TRAIN_SIZES = {"digits": 1442, "mnist": 60_000, "fashion-mnist": 60_000, "cifar10": 50_000}
_UNFIT = {
    ("cifar-cnn", "digits"): "grey",
    ("cifar-cnn", "mnist"): "grey",
    ("cifar-cnn", "fashion-mnist"): "grey",
    ("mnist-cnn", "digits"): "smaller than 16 x 16",
    ("resnet18", "digits"): "smaller than 16 x 16",
    ("mnist-cnn", "cifar10"): "colour",
}


_LIMITS = {"min_clients": "least_cohort", "threshold": "least_threshold", "bits": "least_bits"}
"""Numbers of a committee's stage, and the least ones of the nodes' policy."""


def contradictions(exp: Sections) -> Iterator[Contradiction]:
    """Yield what cannot be, with the keys that say so."""
    if kind := _UNFIT.get((exp.model.name, exp.data.dataset)):
        yield Contradiction(
            ("model.name", "data.dataset"),
            f"model {exp.model.name!r} does not fit data.dataset {exp.data.dataset!r}, "
            f"whose pictures are {kind}; choose another model.name or data.dataset",
        )
    yield from _task(exp)
    if wrong := list(_options(exp)):
        yield from wrong
        return  # whatever is built with these options would fail
    yield from _too_few_examples(exp)
    trained = max(1, int(exp.clients.fraction_train * exp.clients.count))
    if trained < exp.strategy.min_replies:
        yield Contradiction(
            (
                "strategy.min_replies",
                "clients.fraction_train",
                "clients.count",
            ),
            f"strategy.min_replies asks for {exp.strategy.min_replies} usable replies, but "
            f"clients.fraction_train {exp.clients.fraction_train:g} of clients.count "
            f"{exp.clients.count} lets {trained} train; lower the first or raise the others",
        )
    if exp.clients.fraction_evaluate > 0 and exp.data.test_fraction == 0:
        yield Contradiction(
            ("clients.fraction_evaluate", "data.test_fraction"),
            "clients have nothing to evaluate on while data.test_fraction is 0; "
            "set data.test_fraction above 0 or clients.fraction_evaluate to 0",
        )
    yield from _evaluation(exp)
    hosts = exp.simulation.supernodes
    if hosts is not None and hosts > exp.clients.count:
        yield Contradiction(
            ("simulation.supernodes", "clients.count"),
            f"simulation.supernodes {hosts} is more than clients.count {exp.clients.count}, so "
            "that some would host no client; lower the first or raise the second",
        )
    if exp.timing is not None and exp.devices.simulate:
        yield Contradiction(
            ("timing", "devices.simulate"),
            "simulated devices have speeds and hours of their own, which timing would not follow; "
            "leave timing out or set devices.simulate to false",
        )
    yield from _attackers(exp)
    yield from _impostors(exp)
    yield from _personal(exp)
    yield from _scaffold(exp)
    yield from clashes(exp)
    yield from _committees(exp, trained)
    yield from _private(exp)
    yield from _asynchronous(exp)
    yield from _too_many_liars(exp, trained)
    for index, fault in enumerate(exp.faults):
        if fault.client >= exp.clients.count:
            yield Contradiction(
                (f"faults.{index}.client", "clients.count"),
                f"there is no client {fault.client}; with clients.count {exp.clients.count} "
                f"the clients are 0 to {exp.clients.count - 1}",
            )


def _options(exp: Sections) -> Iterator[Contradiction]:
    """Check options that depend on a name: by the plugin's description, or by the suite's code."""
    asked = [
        ("model", exp.model.name, exp.model.options, "model.options"),
        ("dataset", exp.data.dataset, exp.data.options, "data.options"),
        (
            "selection",
            exp.clients.selection,
            exp.clients.selection_options,
            "clients.selection_options",
        ),
        (
            "algorithm",
            exp.clients.algorithm,
            exp.clients.algorithm_options,
            "clients.algorithm_options",
        ),
    ]
    for index, stage in enumerate(exp.strategy.stages):
        key = f"strategy.stages.{index}.options"
        if stage.stage == "robust":
            asked.append(("rule", stage.rule, stage.options, key))
        elif stage.stage == "detect":
            asked.append(("detector", stage.detector, stage.options, key))
    for kind, name, options, key in asked:
        for problem in _problems(kind, name, options):
            yield Contradiction((key, key.rpartition(".")[0]), problem)
    if exp.clients.algorithm not in built_in("algorithm"):
        for key, other, usual in (
            ("personalization.method", exp.personalization.method, "none"),
            ("devices.simulate", exp.devices.simulate, False),
            ("strategy.name", exp.strategy.name == "scaffold", False),
            ("strategy.stages", bool(_by_record(exp)), False),
        ):
            if other != usual:
                yield Contradiction(
                    ("clients.algorithm", key),
                    f"algorithm {exp.clients.algorithm!r} takes the place of what {key} does; "
                    "leave one of the two out",
                )


def _problems(kind: str, name: str, options: Mapping[str, Any]) -> list[str]:
    plugin = plugins.added(kind).get(name)
    if plugin is None and not options:
        return []
    try:
        return option_problems(plugin or plugins.Extension(kind, _ours(kind, name), name), options)
    except ConfigError as error:
        return [str(error)]


def _by_record(exp: Sections) -> list[tuple[str, Any]]:
    """Return the stages that have clients bound what each record does, and where they stand."""
    return [
        (f"strategy.stages.{index}", stage)
        for index, stage in enumerate(exp.strategy.stages)
        if stage.stage == "record_dp"
        or (stage.stage == "distributed_dp" and stage.records is not None)
    ]


def _ours(kind: str, name: str) -> Any:
    """Return what makes something of the suite's own; torch or NumPy are loaded for it."""
    if kind == "rule":
        return plugins.attribute("qsfl_flower.mechanisms.robust.core.registry:RULES")[name]
    if kind == "model":
        return plugins.attribute("qsfl_flower.clients.models:find_model")(name)
    return lambda: None


def _attackers(exp: Sections) -> Iterator[Contradiction]:
    entry_of: dict[int, int] = {}
    for index, attack in enumerate(exp.attacks):
        key = f"attacks.{index}.clients"
        for client in attack.clients:
            if client >= exp.clients.count:
                yield Contradiction(
                    (key, "clients.count"),
                    f"there is no client {client}; with clients.count {exp.clients.count} "
                    f"the clients are 0 to {exp.clients.count - 1}",
                )
            if client in entry_of:
                yield Contradiction(
                    (key, f"attacks.{entry_of[client]}.clients"),
                    f"client {client} attacks already in attacks.{entry_of[client]}; "
                    "name every client once",
                )
            entry_of[client] = index
        if attack.attack in ("label-flip", "backdoor") and attack.rounds != "all":
            yield Contradiction(
                (f"attacks.{index}.rounds", f"attacks.{index}.attack"),
                f"{attack.attack!r} changes the client's data once and for all; "
                "leave rounds out or set it to all",
            )
    if entry_of and len(entry_of) >= exp.clients.count:
        yield Contradiction(
            ("attacks.0.clients", "clients.count"),
            f"all {exp.clients.count} clients attack; leave at least one honest",
        )


def _private(exp: Sections) -> Iterator[Contradiction]:
    where = {stage.stage: f"strategy.stages.{i}" for i, stage in enumerate(exp.strategy.stages)}
    if "adaptive_clip" in where and "central_dp" not in where:
        yield Contradiction(
            (f"{where['adaptive_clip']}.stage",),
            "the quantile of the norms is a query on private data, which only central_dp pays for; "
            "add stage central_dp, or use stage clip",
        )
    if "central_dp" in where and not {"clip", "adaptive_clip"} & set(where):
        yield Contradiction(
            (f"{where['central_dp']}.stage",),
            "without a bound on a client's update no noise is enough; add stage clip",
        )
    shares = next((s for s in exp.strategy.stages if s.stage == "distributed_dp"), None)
    if shares is not None and not {"secure_sum", "masked_sum"} & set(where):
        yield Contradiction(
            (f"{where['distributed_dp']}.stage",),
            "a share of the noise alone protects no client; add stage secure_sum or masked_sum, "
            "or use stage central_dp",
        )
    for stage in exp.strategy.stages:
        if stage.stage == "record_dp" and stage.copies > 1 and not exp.clients.augment:
            yield Contradiction(
                (f"{where['record_dp']}.copies", "clients.augment"),
                f"{stage.copies} equal copies of a record have the gradient of one; set "
                "clients.augment to true, or copies to 1",
            )
    for place, training in _by_record(exp):
        if training.stage == "distributed_dp" and "record_dp" in where:
            yield Contradiction(
                (f"{place}.records", f"{where['record_dp']}.stage"),
                "record_dp protects the records already; set records to null or leave record_dp "
                "out",
            )
        if training.stage == "distributed_dp" and exp.model.local:
            yield Contradiction(
                (f"{place}.stage", "model.local"),
                "layers that stay would move by sums without noise, on which all that is sent "
                "later depends; use stage record_dp, or leave model.local empty",
            )
    central = next((s for s in exp.strategy.stages if s.stage == "central_dp"), None)
    drawn = central is not None and central.poisson and exp.clients.fraction_train < 1
    if drawn and isinstance(exp.strategy, FedAsyncSpec | FedBuffSpec):
        yield Contradiction(
            (f"{where['central_dp']}.poisson", "strategy.name"),
            f"{exp.strategy.name} takes updates in the order of their arrival, which is no random "
            "sample; set poisson to false",
        )


def _scaffold(exp: Sections) -> Iterator[Contradiction]:
    if exp.strategy.name != "scaffold":
        return
    clients = exp.clients
    if clients.optimizer != "sgd" or clients.momentum or clients.weight_decay:
        yield Contradiction(
            ("strategy.name", "clients.optimizer", "clients.momentum", "clients.weight_decay"),
            "strategy 'scaffold' needs plain steps: set clients.optimizer to sgd, clients.momentum "
            "and clients.weight_decay to 0",
        )
    if exp.model.local:
        yield Contradiction(
            ("strategy.name", "model.local"),
            "control variates belong to what all clients share; leave model.local empty or choose "
            "another strategy",
        )
    for place, spec in _by_record(exp):
        if spec.stage == "distributed_dp":
            yield Contradiction(
                (f"{place}.stage", "strategy.name"),
                "control variates would keep what the clients compute before any noise is added; "
                "use stage record_dp or another strategy",
            )


def _personal(exp: Sections) -> Iterator[Contradiction]:
    spec = exp.personalization
    if spec.method == "none":
        return
    # Loads torch, which reading any other configuration does not need.
    from qsfl_flower.personalization import Personalization

    try:
        how = Personalization(**spec.model_dump())
    except ConfigError as error:
        yield Contradiction(("personalization",), f"personalization.{error}")
        return
    for place, stage in _by_record(exp):
        try:
            how.check_records(stage.stage == "record_dp", getattr(stage, "steps", 1))
        except ConfigError as error:
            keys = (f"{place}.stage", "personalization.method")
            yield Contradiction(keys, f"personalization.{error}")
    if exp.strategy.name == "scaffold":
        try:
            how.check_controls()
        except ConfigError as error:
            keys = ("personalization.method", "strategy.name")
            yield Contradiction(keys, f"personalization.{error}")


def _evaluation(exp: Sections) -> Iterator[Contradiction]:
    asked: Any = exp.evaluation
    if asked is None:
        return
    if exp.data.test_fraction == 0:
        yield Contradiction(
            ("evaluation", "data.test_fraction"),
            "clients have nothing to evaluate on while data.test_fraction is 0; set it above 0 or "
            "leave evaluation out",
        )
    if exp.clients.fraction_evaluate > 0:
        yield Contradiction(
            ("clients.fraction_evaluate", "evaluation"),
            "clients would evaluate twice, once for all to see; set clients.fraction_evaluate to 0",
        )


def _impostors(exp: Sections) -> Iterator[Contradiction]:
    if any(stage.stage == "authenticate" for stage in exp.strategy.stages):
        return
    for index, fault in enumerate(exp.faults):
        if fault.kind == "impostor":
            yield Contradiction(
                (f"faults.{index}.kind", "strategy.stages"),
                "there are no keys to lack, so an 'impostor' is like any other client; "
                "add stage authenticate to strategy.stages or choose another kind",
            )


def _asynchronous(exp: Sections) -> Iterator[Contradiction]:
    strategy = exp.strategy
    if not isinstance(strategy, FedBuffSpec | FedAsyncSpec):
        if "tighten-staleness" in strategy.monitor.reactions:
            yield Contradiction(
                ("strategy.monitor.reactions", "strategy.name"),
                f"strategy {strategy.name!r} is synchronous, so there is no staleness to tighten; "
                "leave 'tighten-staleness' out or set strategy.name to fedbuff",
            )
        return
    if strategy.over_selection > 0:
        yield Contradiction(
            ("strategy.over_selection", "strategy.name"),
            f"strategy {strategy.name!r} waits for nobody, so there is nobody to cut off; "
            "set strategy.over_selection to 0 or raise strategy.concurrency",
        )
    if isinstance(strategy, FedBuffSpec) and strategy.buffer_size > exp.clients.count:
        yield Contradiction(
            ("strategy.buffer_size", "clients.count"),
            f"a buffer of {strategy.buffer_size} is never full with clients.count "
            f"{exp.clients.count}, since each client has one place; lower the first or raise the "
            "second",
        )
    if strategy.tighten_to is not None and strategy.tighten_to > strategy.max_staleness:
        yield Contradiction(
            ("strategy.tighten_to", "strategy.max_staleness"),
            f"strategy.tighten_to {strategy.tighten_to} is above strategy.max_staleness "
            f"{strategy.max_staleness}; lower the first or raise the second",
        )


def _too_many_liars(exp: Sections, trained: int) -> Iterator[Contradiction]:
    for index, stage in enumerate(exp.strategy.stages):
        if stage.stage != "robust":
            continue
        key = f"strategy.stages.{index}"
        if stage.num_selected is not None and stage.rule != "multi_krum":
            yield Contradiction(
                (f"{key}.num_selected", f"{key}.rule"),
                f"num_selected goes with rule 'multi_krum', not with {stage.rule!r}; "
                "leave it out or change the rule",
            )
            continue
        yield from _root(exp, stage, key)
        from qsfl_flower.mechanisms.robust.core import TooFewUpdates

        rule, before = parameters_of(stage).parts()
        try:
            rule.liars(trained, trained if before is None else before.rows(trained))
        except TooFewUpdates as error:
            yield Contradiction(
                (f"{key}.num_byzantine", "clients.fraction_train", "clients.count"),
                f"{error}, and at most {trained} clients train in a round; lower "
                "num_byzantine, raise the others, or choose another rule",
            )


def _root(exp: Sections, stage: Any, key: str) -> Iterator[Contradiction]:
    if (stage.rule == "fltrust") != (stage.root_examples is not None):
        yield Contradiction(
            (f"{key}.root_examples", f"{key}.rule"),
            "rule 'fltrust' needs root_examples, the number of training examples that the server "
            "keeps for itself; set it"
            if stage.root_examples is None
            else f"root_examples goes with rule 'fltrust', not with {stage.rule!r}; leave it out "
            "or change the rule",
        )
    if stage.rule != "fltrust":
        return
    if exp.strategy.name == "scaffold":
        yield Contradiction(
            (f"{key}.rule", "strategy.name"),
            "the server's own update has no control variates, which those of strategy 'scaffold' "
            "have; choose another rule or strategy",
        )
    if exp.personalization.method != "none":
        yield Contradiction(
            (f"{key}.rule", "personalization.method"),
            "the server trains the common model, and its update says nothing about personal ones; "
            "set personalization.method to none or choose another rule",
        )


def _committees(exp: Sections, trained: int) -> Iterator[Contradiction]:
    asynchronous = isinstance(exp.strategy, FedAsyncSpec | FedBuffSpec)
    for index, stage in enumerate(exp.strategy.stages):
        if stage.stage == "masked_sum":
            least, key = max(
                (stage.min_clients, f"strategy.stages.{index}.min_clients"),
                (exp.clients.policy.least_cohort, "clients.policy.least_cohort"),
            )
            if trained < least:
                yield Contradiction(
                    ("clients.count", "clients.fraction_train", key),
                    f"{trained} clients train in a round, and a sum has at least {least} of them; "
                    f"raise clients.count or lower {key}",
                )
        if stage.stage not in ("secure_sum", "secure_krum"):
            continue
        for key, limit in _LIMITS.items():
            if getattr(stage, key) < (asked := getattr(exp.clients.policy, limit)):
                yield Contradiction(
                    (f"strategy.stages.{index}.{key}", f"clients.policy.{limit}"),
                    f"{key} is {getattr(stage, key)}, and nodes refuse sums with less than "
                    f"clients.policy.{limit} {asked}; raise the first or lower the second",
                )
        place, krum = f"strategy.stages.{index}", stage.stage == "secure_krum"
        least = fewest_clients(
            stage.members,
            stage.min_clients,
            getattr(stage, "num_byzantine", None),
            getattr(stage, "num_selected", None),
        )
        if trained < least and not asynchronous:
            byzantine = f", {place}.num_byzantine" if krum else ""
            yield Contradiction(
                ("clients.count", "clients.fraction_train", f"{place}.members"),
                f"{trained} clients train in a round, the smallest federation in which stage "
                f"{stage.stage!r} can open a sum has {least}; raise clients.count, or lower "
                f"{place}.members, {place}.min_clients{byzantine}",
            )
        if isinstance(exp.strategy, FedAsyncSpec | FedBuffSpec) and not (
            isinstance(exp.strategy.staleness, ConstantSpec) or exp.clients.policy.weights
        ):
            yield Contradiction(
                ("strategy.staleness", "clients.policy.weights", f"{place}.stage"),
                f"nodes refuse hidden sums whose weights differ, as {exp.strategy.staleness.rule} "
                "staleness makes them; set strategy.staleness.rule to constant, or "
                "clients.policy.weights to true",
            )
        rounds = getattr(exp.strategy, "max_staleness", 0) + 1
        if rounds > exp.clients.policy.window:
            yield Contradiction(
                ("strategy.max_staleness", "clients.policy.window", f"{place}.stage"),
                f"a hidden sum adds up updates of {rounds} rounds, nodes allow "
                f"{exp.clients.policy.window}; set clients.policy.window to {rounds} or more",
            )


def _task(exp: Sections) -> Iterator[Contradiction]:
    """Tell what needs another task than that of the data."""
    task, loss = exp.data.task, exp.model.loss
    if loss is not None and loss not in LOSSES[task]:
        yield Contradiction(
            ("model.loss", "data.task"),
            f"loss {loss!r} does not fit task {task!r}, which takes {', '.join(LOSSES[task])}; "
            "set one of them, or data.task to another",
        )
    if task == "classes":
        return
    needs = {
        "clients.declare_labels": exp.clients.declare_labels,
        "clients.selection": exp.clients.selection == "diverse",
        **{
            f"attacks.{index}.attack": attack.attack in ("label-flip", "backdoor")
            for index, attack in enumerate(exp.attacks)
        },
    }
    for key in (key for key, wrong in needs.items() if wrong):
        yield Contradiction(
            (key, "data.task"), f"{key} is about classes, and task {task!r} has none; change one"
        )


def _too_few_examples(exp: Sections) -> Iterator[Contradiction]:
    size = TRAIN_SIZES.get(exp.data.dataset)
    partition = exp.data.partition
    if isinstance(partition, IidSpec | WriterSpec | NaturalSpec):
        each, key = 1, "data.partition.scheme"
    elif isinstance(partition, DirichletSpec):
        each, key = partition.min_size, "data.partition.min_size"
    else:
        each, key = partition.shards_per_client, "data.partition.shards_per_client"
    root = {
        f"strategy.stages.{index}.root_examples": stage.root_examples
        for index, stage in enumerate(exp.strategy.stages)
        if stage.stage == "robust" and stage.root_examples
    }
    needed = each * exp.clients.count + sum(root.values())
    if size is not None and needed > size:
        kept = f" and the server's {sum(root.values())}" if root else ""
        lower = [*root, *([key] if each > 1 else []), "clients.count"]
        yield Contradiction(
            (*root, key, "clients.count", "data.dataset"),
            f"clients.count {exp.clients.count} with at least {each} each{kept} need {needed} "
            f"examples, but data.dataset {exp.data.dataset!r} has {size} to train on; "
            f"lower {' or '.join(lower)}",
        )
