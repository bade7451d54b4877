"""The simulated phones over time: how they fared, who trained, and why the others did not.

The days are played back from the configuration and the seed, as the clients saw them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from qsfl_flower.clients.device import DeviceClass, Reading
from qsfl_flower.simulations.config import DevicesSpec
from qsfl_flower.simulations.phones import Phone, conditions_of, moment_of, phones_of
from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element, table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REFUSED = "device-"
_HEAD = ("Class", "Devices", "Times asked", "Trained", "Refused", "Mean battery", "Could train")


def devices(run: Run) -> Section | None:
    """Show the fleet round by round and class by class."""
    try:
        spec = DevicesSpec.model_validate(run.config.get("devices", {}))
        fleet = phones_of(spec, int(run.config["clients"]["count"]), int(run.config["seed"]))
    except (ValidationError, KeyError, TypeError, ValueError):
        return None
    if not spec.simulate:
        return None
    rounds = [record["round"] for record in run.metrics if record["round"] > 0]
    if not rounds:
        return None
    days = [[phone.habits(moment_of(spec, r)) for phone in fleet] for r in rounds]
    outcomes = _outcomes(run)
    plots = Row((_state(spec, rounds, days), _trained(rounds, outcomes)))
    words = element(
        "p",
        f"{text.count(len(fleet), 'simulated phone')}; the first round is at "
        f"{_clock(moment_of(spec, 1))}, one round every {spec.round_minutes:g} minutes.",
    )
    return Section("devices", "Devices", (words, plots, _table(spec, fleet, days, outcomes)))


def _outcomes(run: Run) -> dict[int, dict[str, str]]:
    """Return what became of each asked client in each round: ``trained``, or the reason."""
    found: dict[int, dict[str, str]] = {}
    for record in run.clients():
        status = str(record.get("status"))
        what = status if status.startswith(_REFUSED) else "trained"
        if status not in ("accepted", what):
            what = "other reasons"
        found.setdefault(int(record["round"]), {})[str(record.get("client"))] = what
    return found


def _state(spec: DevicesSpec, rounds: Sequence[float], days: Sequence[Sequence[Reading]]) -> Plot:
    conditions = conditions_of(spec)

    def shares(test: str) -> list[float]:
        return [sum(bool(getattr(r, test)) for r in day) / len(day) for day in days]

    battery = [sum(r.battery or 0.0 for r in day) / len(day) for day in days]
    able = [sum(conditions.to_start(r).action != "stop" for r in day) / len(day) for day in days]
    lines = {
        "mean battery": battery,
        "charging": shares("charging"),
        "metered": shares("metered"),
        "in use": shares("in_use"),
        "online": shares("online"),
        "could train": able,
    }

    def paint(axes: Axes) -> None:
        for (name, values), color in zip(lines.items(), figures.palette(len(lines)), strict=True):
            wide = 2.2 if name == "could train" else 1.2
            axes.plot(rounds, values, color=color, linewidth=wide, label=name)
        axes.set_ylim(0, 1.02)
        figures.percents(axes.yaxis)
        figures.rounds_axis(axes, rounds)
        figures.legend(axes, columns=3)

    alt = (
        f"State of the fleet by round. On average {text.percent(sum(able) / len(able))} of the "
        f"devices could train, from {text.percent(min(able))} to {text.percent(max(able))}."
    )
    return figures.draw("fleet", "State of the fleet", alt, paint)


def _trained(rounds: Sequence[float], outcomes: Mapping[int, Mapping[str, str]]) -> Plot:
    counts = [Counter(outcomes.get(int(r), {}).values()) for r in rounds]
    total: Counter[str] = sum(counts, Counter())
    names = ["trained", *(n for n, _ in total.most_common() if n != "trained")]
    parts = {name: [float(c[name]) for c in counts] for name in names}

    def paint(axes: Axes) -> None:
        figures.stacked(axes, rounds, parts)
        figures.rounds_axis(axes, rounds)
        figures.whole_numbers(axes.yaxis)
        figures.legend(axes)

    told = ", ".join(f"{total[name]:,} {name}" for name in names)
    return figures.draw("willing", "Who trained, and why not", f"Devices asked: {told}.", paint)


def _table(
    spec: DevicesSpec,
    fleet: Sequence[Phone],
    days: Sequence[Sequence[Reading]],
    outcomes: Mapping[int, Mapping[str, str]],
) -> Html:
    conditions, rows = conditions_of(spec), []
    for kind in DeviceClass:
        members = [i for i, phone in enumerate(fleet) if phone.profile.device_class is kind]
        if not members:
            continue
        names = {str(i) for i in members}
        whats = [w for one in outcomes.values() for name, w in one.items() if name in names]
        readings = [day[i] for day in days for i in members]
        able = sum(conditions.to_start(r).action != "stop" for r in readings)
        rows.append(
            (
                kind.value,
                len(members),
                len(whats),
                whats.count("trained"),
                sum(w.startswith(_REFUSED) for w in whats),
                text.percent(sum(r.battery or 0.0 for r in readings) / len(readings)),
                text.percent(able / len(readings)),
            )
        )
    return table(_HEAD, rows, "Classes of devices", (0,))


def _clock(moment: float) -> str:
    return f"{int(moment // 3600) % 24:02d}:{int(moment // 60) % 60:02d}"
