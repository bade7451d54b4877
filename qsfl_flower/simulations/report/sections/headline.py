"""The result at a glance: how the run ended, its numbers, what was rejected and why."""

from __future__ import annotations

import math

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import Html, details, element, join
from qsfl_flower.simulations.report.outcome import SERVER, Outcome, last, outcome, total
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.runs import UNFINISHED, Record, Run, number

_TONES = {"finished": "good", "failed": "bad"}
_LISTED = 5


def headline(run: Run) -> Section:
    """Sum up the run in one sentence, a row of numbers and the irregularities."""
    result = outcome(run)
    return Section(
        "result",
        "Result",
        (
            element("p", _badge(result.status), " ", _sentence(run, result)),
            element("p", _what(run)),
            _tiles(run, result),
            *_irregularities(run, result),
        ),
    )


def _badge(status: str) -> Html:
    return element("span", status, class_=f"badge {_TONES.get(status, 'warn')}")


def _sentence(run: Run, result: Outcome) -> Html:
    done = f"after {text.count(result.rounds, 'round')}"
    resume = element("code", f"qsfl run --resume {run.name}")
    parts: list[object]
    if result.status == "finished":
        parts = [f"The run finished {done}."]
    elif result.status == "failed":
        parts = [
            f"The run failed {done}: ",
            (result.error or "no error was recorded").rstrip("."),
            ".",
        ]
    elif result.status == UNFINISHED:
        parts = [f"There is no summary {done}: the run is not over, or it was killed. "]
        parts += ["A killed run continues with ", resume, "."]
    else:
        parts = [f"The run was {result.status} {done}. It continues with ", resume, "."]
    if resumed := _resumed(run):
        parts.append(f" It was resumed {text.count(resumed, 'time')}.")
    return join(parts)


def _resumed(run: Run) -> int:
    """Count the resumptions; damaged events have their own section to say so."""
    try:
        return sum(event.get("kind") == "resumed" for event in run.events)
    except RunError:
        return 0


def _what(run: Run) -> str:
    """Say what was run, as far as the configuration has the usual keys."""
    try:
        config = run.config
    except RunError as error:
        return f"The configuration is not readable. {error}"
    model, data = _section(config, "model").get("name"), _section(config, "data")
    strategy, rounds = _section(config, "strategy"), config.get("rounds")
    stages = _each(strategy, "stages", "stage")
    faults = set(_each(config, "faults", "client"))
    phrases = [
        model and f"model {model}",
        data.get("dataset") and f"data {data['dataset']}",
        strategy.get("name") and f"strategy {strategy['name']}",
        stages and f"stages {', '.join(stages)}",
        rounds and f"{rounds} rounds planned",
        faults and f"faults simulated at {text.some_clients(faults)}",
    ]
    sentence = "; ".join(str(phrase) for phrase in phrases if phrase)
    return sentence[:1].upper() + sentence[1:]


def _section(config: Record, name: str) -> Record:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _each(config: Record, name: str, key: str) -> list[str]:
    listed = config.get(name)
    return [
        str(item[key])
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and key in item
    ]


def _tiles(run: Run, result: Outcome) -> Html:
    metrics = run.metrics
    where = "clients' own test data"
    if result.side == SERVER:
        where = f"{_whose(run)}server's test set"
    lost = "not a finite number" if result.accuracy is not None else "not measured"
    tiles = [
        ("Accuracy", text.percent(result.accuracy), _best(metrics, result.side, where)),
        *_clients(metrics, result.side),
        ("Loss", text.decimal(result.loss), lost if result.loss is None else where),
        ("Rounds", text.decimal(result.rounds), _per_round(metrics)),
        ("Wall time", text.duration(result.seconds), _pace(result)),
        ("Sent to clients", text.size(result.bytes_down), _per_client(metrics, "bytes_down")),
        ("Sent by clients", text.size(result.bytes_up), _per_client(metrics, "bytes_up")),
    ]
    if result.epsilon is not None:
        tiles.append(("Privacy spent", f"ε = {text.decimal(result.epsilon)}", ""))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), element("dd", note))
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _whose(run: Run) -> str:
    """Say what the server evaluates where layers stay on the devices."""
    try:
        local = _section(run.config, "model").get("local")
    except RunError:
        return ""
    return "common model, local layers at their first values; " if local else ""


def _clients(metrics: tuple[Record, ...], side: str) -> list[tuple[str, str, str]]:
    """Return the tile of the clients' own evaluation, where the server has one too."""
    own = last(metrics, "client_eval_accuracy") if side == SERVER else None
    return [("Clients' accuracy", text.percent(own), "own test data")] if own is not None else []


def _best(metrics: tuple[Record, ...], side: str, where: str) -> str:
    found = [
        (value, record["round"])
        for record in metrics
        if (value := number(record.get(f"{side}_accuracy"))) is not None and math.isfinite(value)
    ]
    if not found:
        return "not measured"
    best, at = max(found, key=lambda pair: pair[0])
    if text.percent(best) == text.percent(found[-1][0]):
        return where
    return f"{where}; best {text.percent(best)} (round {at})"


def _per_round(metrics: tuple[Record, ...]) -> str:
    selected = [value for record in metrics if (value := number(record.get("selected")))]
    if not selected:
        return ""
    low, high = min(selected), max(selected)
    amount = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
    return f"{amount} clients asked in each"


def _pace(result: Outcome) -> str:
    if result.seconds is None or not result.rounds:
        return ""
    return f"{text.duration(result.seconds / result.rounds)} a round"


def _per_client(metrics: tuple[Record, ...], key: str) -> str:
    amount, selected = total(metrics, key), total(metrics, "selected")
    return f"{text.size(amount / selected)} a client and round" if amount and selected else ""


def _irregularities(run: Run, result: Outcome) -> list[Html]:
    found = [_unused(run, result)]
    found += _marked(run.metrics, "skipped", "left the model unchanged")
    found += _marked(run.metrics, "alarm", "raised an alarm")
    return found


def _unused(run: Run, result: Outcome) -> Html:
    asked = total(run.metrics, "selected")
    if not result.unused:
        return element("p", "Every update that was asked for was used." if asked else None)
    amount = sum(result.unused.values())
    of = f" of {text.count(asked, 'update')}" if asked else ""
    verb = "was" if amount == 1 else "were"
    items = [
        element("li", f"{times:,} {text.reason(name)} ", element("code", name))
        for name, times in result.unused.items()
    ]
    return _note(f"{amount:,}{of} {verb} not used:", items)


def _marked(metrics: tuple[Record, ...], key: str, what: str) -> list[Html]:
    marked = [record for record in metrics if record.get(key)]
    if not marked:
        return []
    items = [element("li", f"round {record['round']}: {record[key]}") for record in marked]
    return [_note(f"{text.count(len(marked), 'round')} {what}:", items)]


def _note(heading: str, items: list[Html]) -> Html:
    parts = [element("strong", heading), element("ul", *items[:_LISTED])]
    if len(items) > _LISTED:
        parts.append(details(f"{len(items) - _LISTED} more", element("ul", *items[_LISTED:])))
    return element("div", *parts, class_="note")
