"""Questions about tables: error and cost of each, frequent texts beside TrieHH, and intervals.

TrieHH is that of W. Zhu, P. Kairouz, B. McMahan, H. Sun, W. Li, "Federated heavy hitters discovery
with differential privacy", 2020, arXiv:1902.08534, with the parameters of its corollary 1; its
server sees the votes of the sampled users, ours sees noisy sums alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from qsfl_flower.asynchrony import WallClock
from qsfl_flower.clients.analytics import table_mod
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.mechanisms.analytics.core.plan import Answers, Plan
from qsfl_flower.mechanisms.analytics.options import (
    Correlation,
    Counts,
    HeavyHitters,
    Histogram,
    Mean,
    Quantiles,
    Question,
    Variance,
)
from qsfl_flower.privacy.calibration import noise_multiplier_for
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.strategies import PrivacyBudget
from qsfl_flower.strategies.analytics import FederatedAnalytics, Findings, Guarantee, Inquiry
from qsfl_flower.testing import LocalFederation

NAME = "analytics"
DESCRIPTION = "questions about tables: error, bytes and CPU of each; frequent texts beside TrieHH"

EPSILON, DELTA = 1.0, 1e-6
MAX_RANK_ERROR = 0.01
TRIE_DELTA, LENGTH = 2.3e-12, 10  # TrieHH's published defaults

Row = dict[str, Any]
Columns = dict[str, NDArray[Any]]


def run(quick: bool) -> list[Row]:
    """Return a row for each question, for each number of frequent texts, and for each interval."""
    clients, rows = (10, 200) if quick else (100, 1000)
    return [
        *(_asked(question, clients, rows, limited=not quick) for question in QUESTIONS),
        *(row for e in (1.0, 4.0) for row in _frequent(20_000 if quick else 500_000, e)),
        *_coverage(100 if quick else 1000),
    ]


QUESTIONS: tuple[Question, ...] = (
    Mean(column="age", low=0, high=120),
    Variance(column="age", low=0, high=120),
    Histogram(column="age", low=0, high=120, bins=24),
    Counts(column="name", values=("anna", "bob")),
    Quantiles(column="age", low=0, high=120, quantiles=(0.05, 0.25, 0.5, 0.75, 0.95)),
    Correlation(columns=("x", "y"), low=(-4, -4), high=(4, 4)),
    HeavyHitters(column="name", max_length=5),
)


def table(rows: int, seed: int) -> Columns:
    """Return gamma ages, four names, and two columns whose correlation is 0.6."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return {
        "age": rng.gamma(3, 10, rows),
        "name": rng.choice(["anna", "bob", "bobby", "carla"], rows, p=[0.5, 0.3, 0.15, 0.05]),
        "x": x,
        "y": 0.6 * x + 0.8 * rng.normal(size=rows),
    }


def _asked(question: Question, clients: int, rows: int, limited: bool) -> Row:
    """Ask one question over all messages, mods and shares of a committee, in this process."""
    tables = [table(rows, n) for n in range(clients)]
    mod = table_mod(
        MinimumPolicy(epsilon=EPSILON, delta=DELTA),
        lambda context, needs: tables[int(context.node_config["partition-id"])],
    )
    there = LocalFederation(clients=clients, mods=[mod, qsfl_mod])
    budget = PrivacyBudget(epsilon=EPSILON, delta=DELTA)
    guarantee = Guarantee(budget, "record", rows, clients, math.ceil(0.8 * clients))
    strategy = FederatedAnalytics(
        Inquiry((question,), guarantee),
        credentials=there.credentials,
        sums={"clock": there.grid_time},
        clock=WallClock(there.grid.time.monotonic),
    )
    began = time.process_time()
    with there.grid.time.for_strategies():
        found = strategy.ask(there.grid, 60.0)
    spent = time.process_time() - began
    whole = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    error, what = _error(question, found, whole)
    error = float(error)
    row: Row = {
        "measurement": f"{question.kind}, {clients * rows:,} rows of {clients} clients",
        "ours": error,
        "unit": what,
        "kB up a client": round(found.bytes_up / clients / 1e3, 1),
        "CPU s, all": round(spent, 2),
        "rounds": len(found.cohorts),
    }
    if limited and isinstance(question, Quantiles):
        row |= {"limit": f"< {MAX_RANK_ERROR:g}", "ok": bool(error < MAX_RANK_ERROR)}
    return row


def _error(question: Question, found: Findings, whole: Columns) -> tuple[float, str]:
    told = found[question.title]
    age = np.clip(whole["age"], 0, 120)
    if isinstance(question, Quantiles):
        gaps = [abs((age < q["value"]).mean() - q["quantile"]) for q in told["quantiles"]]
        return max(gaps), "largest error in rank"
    if isinstance(question, Histogram):
        true = np.histogram(age, question.bins, (0, 120))[0]
        return max(abs(b["value"] - t) for b, t in zip(told["bins"], true, strict=True)), "rows"
    if isinstance(question, Counts):
        gaps = [abs(v["value"] - (whole["name"] == v["text"]).sum()) for v in told["values"][:-1]]
        return float(max(gaps)), "rows"
    if isinstance(question, Correlation):
        true = float(np.corrcoef(whole["x"], whole["y"])[0, 1])
        return abs(told["pairs"][0]["value"] - true), "of the correlation"
    if isinstance(question, HeavyHitters):
        right = {"anna", "bob", "bobby", "carla"}
        return len(right & {w["text"] for w in told["words"]}) / len(right), "recall of 4 texts"
    return abs(told["mean"]["value"] - age.mean()), "years, of the mean"


def _frequent(users: int, epsilon: float) -> list[Row]:
    """Recall of the k most frequent of 5,000 words with Zipf's exponent 1, a word for each user."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(3, 9, 5000)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(rng.choice(letters, n)) for n in lengths})
    rng.shuffle(words)
    shares = 1 / np.arange(1, len(words) + 1)
    told = rng.choice(words, users, p=shares / shares.sum())
    plan = Plan((HeavyHitters(column="word", max_length=LENGTH, most=200),))
    noise = noise_multiplier_for(epsilon, TRIE_DELTA, plan.rounds)
    began = time.process_time()
    found = Answers(plan)
    for number in range(1, plan.rounds + 1):
        if (ask := found.ask(number)) is None:
            break
        vector = ask.vector({"word": told}, 1e9)
        found.take(number, vector + noise * rng.normal(size=vector.size), noise)
    ours = [word["text"] for word in found.results(0.95)[1]["words"] if word["whole"]]
    spent = time.process_time() - began
    theirs = trie_hh(told, epsilon, TRIE_DELTA, LENGTH, rng)
    common = [word for word, _ in Counter(told.tolist()).most_common(100)]
    rows: list[Row] = []
    for k in (5, 10, 20, 50, 100):
        mine, other = (len(set(common[:k]) & set(one)) / k for one in (ours, theirs))
        rows.append(
            {
                "measurement": f"recall of the top {k} of {users:,} users, epsilon {epsilon:g}",
                "ours": mine,
                "TrieHH": other,
                "CPU s, all": round(spent, 2),
                "limit": ">= TrieHH",
                "ok": mine >= other,
            }
        )
    false = len(set(ours) - set(told.tolist()))
    what = f"words found that nobody has, epsilon {epsilon:g}"
    rows.append({"measurement": what, "ours": false, "TrieHH": len(set(theirs) - {*told.tolist()})})
    return rows


def trie_hh(
    told: NDArray[Any], epsilon: float, delta: float, length: int, rng: np.random.Generator
) -> list[str]:
    """Return what TrieHH finds; each user has one word."""
    threshold = 5
    while (threshold - 3) / (threshold - 2) * math.factorial(threshold) < 1 / delta:
        threshold += 1
    growth = math.exp(epsilon / length)
    threshold = max(threshold, math.ceil(growth - 1))
    sampled = int(len(told) * (growth - 1) / (threshold * growth))
    trie, found = {""}, []
    for depth in range(1, length + 1):
        votes: Counter[str] = Counter()
        for word in rng.choice(told, sampled, replace=False).tolist():
            marked = word + "$"
            if len(marked) >= depth and marked[: depth - 1] in trie:
                votes[marked[:depth]] += 1
        trie = {prefix for prefix, count in votes.items() if count >= threshold}
        found += [prefix[:-1] for prefix in trie if prefix.endswith("$")]
    return found


def _coverage(runs: int) -> list[Row]:
    """How often intervals of 0.9 hold the truth; fewer than the limit happens once in a million."""
    plan = Plan(tuple(q for q in QUESTIONS if not isinstance(q, HeavyHitters)))
    columns, noise, rng = table(5000, 3), 8.0, np.random.default_rng(11)
    ask = plan.ask(1, {})
    vector, hits = ask.vector(columns, 1e9), Counter[str]()
    age = np.clip(columns["age"], 0, 120)
    ranks = np.sort(age)
    inside = np.clip(columns["x"], -4, 4), np.clip(columns["y"], -4, 4)
    bins = np.histogram(age, 24, (0, 120))[0]
    for _ in range(runs):
        answers = Answers(plan)
        answers.take(1, vector + noise * rng.normal(size=vector.size), noise)
        told = {one["name"]: one for one in answers.results(0.9)}
        middle = told["quantiles of age"]["quantiles"][2]
        ends = [np.searchsorted(ranks, middle[k]) for k in ("low", "high")]
        hits["quantiles"] += bool(ends[0] <= 2500 <= ends[1])
        for name, one, true in (
            ("rows", told["rows"]["rows"], 5000),
            ("mean", told["mean of age"]["mean"], age.mean()),
            ("variance", told["variance of age"]["variance"], age.var()),
            ("histogram", told["histogram of age"]["bins"][5], bins[5]),
            ("counts", told["counts of name"]["values"][0], (columns["name"] == "anna").sum()),
            (
                "correlation",
                told["correlation of x, y"]["pairs"][0],
                np.corrcoef(*inside)[0, 1],
            ),
        ):
            hits[name] += bool(one["low"] <= true <= one["high"])
    least = float(binom.ppf(1e-6, runs, 0.9)) / runs
    return [
        {
            "measurement": f"{name}: intervals of 0.9 that hold the truth, {runs:,} runs",
            "ours": count / runs,
            "limit": f">= {least:g}",
            "ok": count / runs >= least,
        }
        for name, count in hits.items()
    ]
