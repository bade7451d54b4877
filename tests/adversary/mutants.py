"""Take each guard out once: the searches must find what it keeps a lying server from.

``python -m tests.adversary.mutants [NAME ...]`` prints after how many examples; `.ci/nightly` runs
it. Two guards that stand behind each other are taken out together. The judge is linear: it does not
see what a sum tells modulo public weights; other tests are about these.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import CodeType
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import FlakyFailure

from qsfl_flower.mechanisms.masked_sum import client as masked_sum
from qsfl_flower.node import instructions
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.pairwise import client
from qsfl_flower.secure.pairwise.graph import Graph
from qsfl_flower.secure.pairwise.terms import Policy

from . import masks, members, test_search

MOST = 1000
"""Examples after which a mutant counts as missed."""

Edit = tuple[Callable, str, str]
"""A function, a part of its source, and what stands there instead."""

MUTANTS: dict[str, tuple[str | int, list[Edit]]] = {
    "members: other instructions": (1, [(Desk.take, "!= h.instruction:", "is None:")]),
    "members: second question": (1, [(Desk.take, "question != self.question", "False")]),
    "members: rounds go back": (1, [
        (Desk.take, "terms.round <= self.closed", "False"),
        (Desk.release, " or server_round <= self.closed", ""),
    ]),
    "members: cohort": (1, [
        (Desk.release, "if not least <=", "if not 1 <="),
        (Desk.release, "fewest < least", "False"),
    ]),
    "members: shares are forgotten": (members.ROUNDS, [
        (Desk.take, "if use.until >= terms.round", "if False"),
    ]),
    "masks: steps are forgotten": ("masks", [
        (masked_sum._take, "last[: len(now)] >= now", "False"),
    ]),
    "masks: other instructions": ("masks", [
        (client._open_packet, "promise.instruction != client.instruction", "False"),
    ]),
    "masks: threshold": ("masks", [(Graph.check, "2 * self.threshold <= n - 1 + c", "False")]),
    "masks: other survivors": ("masks", [
        (client.release, 'client.released not in (b"", agreed)', "False"),
        (masked_sum._take, " and last == now + about", ""),
    ]),
    "masks: cohort": ("masks", [(Policy.check, "left < self.min_clients", "False")]),
    "devices: hidden only": ("hidden", [
        (instructions._check_sum, "policy.hidden_only and", "False and"),
    ]),
    "devices: releases": ("counted", [(instructions._count_release, "before >= most", "False")]),
    "devices: promises not kept": ("private", [
        (instructions._compare, "kept and rate <= offer.sampling_rate", "True"),
    ]),
    "devices: promises not added up": ("private", [
        (instructions._charge, "used > offer.releases", "False"),
    ]),
    "devices: epsilon of all promises": ("private", [
        (instructions._charge, "epsilon > least.epsilon * (1 + 1e-9)", "False"),
    ]),
}  # fmt: skip


def mutated(function: Callable, edits: list[Edit]) -> CodeType:
    """Return the code of a function with other conditions."""
    source = textwrap.dedent(inspect.getsource(function))
    for _, condition, instead in edits:
        if source.count(condition) != 1:
            raise LookupError(f"{function.__qualname__}: {condition!r} is not there once")
        source = source.replace(condition, instead)
    made: dict[str, Callable] = {}
    code = compile("from __future__ import annotations\n" + source, function.__qualname__, "exec")
    exec(code, vars(sys.modules[function.__module__]), made)
    return made[function.__name__].__code__


def found_after(name: str) -> int | None:
    """Return how many examples the search needs to find a mutant; None if it finds nothing."""
    tried, found = 0, None

    def counting(*strategies):
        def around(test):
            def counted(example):
                nonlocal tried, found
                tried += 1
                try:
                    test(example)
                except AssertionError:
                    found = found or tried
                    raise

            return given(*strategies)(counted)

        return around

    few = settings(
        max_examples=MOST, derandomize=True, database=None, phases=[Phase.generate],
        deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    where, edits = MUTANTS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for function in {edit[0]: None for edit in edits}:
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = mutated(function, [e for e in edits if e[0] is function])
        stack.enter_context(patch.object(test_search, "given", counting))
        stack.enter_context(patch.object(test_search, "search", lambda _: few))
        try:
            if where == "masks":
                test_search.test_masks_open_no_sum_of_few(masks.Masks())
            elif isinstance(where, int):
                made = test_search.committees_in(folder)
                test_search.test_members_open_one_sum_a_round_and_no_secret(made, where)
            else:
                made = test_search.federations_in(folder)
                test_search.test_a_device_sends_nothing_that_its_policy_forbids(made, where)
        except (AssertionError, FlakyFailure):  # noise is not the same when it is played again
            return found
    return None


def main() -> None:
    """Run the command."""
    missed = []
    for name in sys.argv[1:] or MUTANTS:
        count = found_after(name)
        missed += [name] if count is None else []
        print(f"{name:34}", "missed" if count is None else f"found in example {count}", flush=True)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
