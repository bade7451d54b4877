"""The sections of the report in their order.

A section is a function from a run to a `Section`, or to None if it has nothing to say about that
run. It reads, computes and draws, and writes nothing. To extend the report, write such a function
in a module of its own and put it into `SECTIONS`.
"""

from __future__ import annotations

from qsfl_flower.simulations.report.section import SectionFunction
from qsfl_flower.simulations.report.sections.attack import attack
from qsfl_flower.simulations.report.sections.clients import clients
from qsfl_flower.simulations.report.sections.committee import committee
from qsfl_flower.simulations.report.sections.curves import curves
from qsfl_flower.simulations.report.sections.detection import detection
from qsfl_flower.simulations.report.sections.devices import devices
from qsfl_flower.simulations.report.sections.evaluation import evaluation
from qsfl_flower.simulations.report.sections.events import events
from qsfl_flower.simulations.report.sections.headline import headline
from qsfl_flower.simulations.report.sections.partition import partition
from qsfl_flower.simulations.report.sections.personalization import personalization
from qsfl_flower.simulations.report.sections.privacy import privacy
from qsfl_flower.simulations.report.sections.selection import selection
from qsfl_flower.simulations.report.sections.setup import configuration, environment
from qsfl_flower.simulations.report.sections.stages import stages
from qsfl_flower.simulations.report.sections.timing import timing
from qsfl_flower.simulations.report.sections.traffic import traffic

SECTIONS: tuple[SectionFunction, ...] = (
    headline,
    attack,
    curves,
    evaluation,
    privacy,
    traffic,
    partition,
    clients,
    detection,
    committee,
    devices,
    timing,
    selection,
    personalization,
    stages,
    events,
    configuration,
    environment,
)
