"""Robust rules: the one description of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qsfl_flower.plugins import Options, option

if TYPE_CHECKING:
    from qsfl_flower.mechanisms.robust.core import Preparation, Rule

RuleName = Literal[
    "krum", "fast_krum", "multi_krum", "median", "trimmed_mean", "meamed", "bulyan",
    "geometric_median", "centered_clipping", "mda", "cge", "norm_bounded", "fltrust", "mean",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RobustOptions(Options):
    """Combines updates by a rule that some of them cannot mislead, in place of the mean."""

    rule: RuleName = option(
        "Name of the rule; docs/robustness.md compares.", "multi_krum", kind="rule"
    )
    options: Mapping[str, Any] = option(
        "Options of the rule, its own besides the keys below, by name; which there are depends on "
        "rule.",
        {},
        schema={"x-options-of": "rule"},
    )
    num_byzantine: int | None = option(
        "How many updates of a round may be malicious; null: a third, or as many as the rule "
        "withstands.",
        None,
        ge=0,
        le=100_000,
    )
    num_selected: int | None = option(
        "For multi_krum: how many updates are averaged; null: all but num_byzantine.",
        None,
        ge=1,
        le=100_000,
    )
    root_examples: int | None = option(
        "For fltrust, which needs it: how many training examples, drawn at random, belong to the "
        "server and to no client (examples).",
        None,
        ge=1,
        le=10**9,
    )
    before: Literal["nnm", "bucketing"] | None = option(
        "How updates are mixed before the rule sees them: nnm, nearest-neighbour mixing; "
        "bucketing, means of random buckets.",
        None,
    )
    bucket_size: int = option("For bucketing: updates per bucket.", 2, ge=1, le=1000)

    def parts(self) -> tuple[Rule, Preparation | None]:
        """Return the rule and what comes before it; reading a file must not load NumPy."""
        from qsfl_flower.mechanisms.robust.core import PREPARATIONS, RULES, Bucketing, MultiKrum

        if self.rule == "multi_krum":
            rule: Rule = MultiKrum(self.num_byzantine, self.num_selected)
        else:
            rule = RULES[self.rule](num_byzantine=self.num_byzantine, **self.options)
        if self.before == "bucketing":
            return rule, Bucketing(self.bucket_size)
        return rule, None if self.before is None else PREPARATIONS[self.before]()
