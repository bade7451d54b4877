"""Chains for common needs: functions that return a strategy, from what only its user can decide.

All of them take the arguments of `StableFedAvg` by name, further stages among them.
Those whose updates are hidden do not evaluate on the clients one by one. `cross_silo` and
`full_chain` sum the usual metrics unseen where nothing is to be noisy; the others take
``evaluation=``, or evaluate on the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.bounds.server import Clip
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.mechanisms.compression.server import SharedMask
from qsfl_flower.mechanisms.evaluation.server import NOISY, Evaluation
from qsfl_flower.mechanisms.privacy.server import DistributedDP, RecordDP
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureKrum, SecureSum
from qsfl_flower.rounds.policies import Available
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.strategies.options import (
    StrategyOptions,
    at_least,
    first,
    without_evaluation,
)
from qsfl_flower.strategies.secure import SecureFedAvg, SecureMultiKrum, sum_settings
from qsfl_flower.strategies.stable import StableFedAvg

COMMITTEE = Committee(members=7, threshold=3, quorum=5)
"""Seven members: two of them together learn nothing, even if the server helps them and lies; two
may vanish."""

METRICS = ("train-loss", "train-accuracy", "train_loss", "train_acc", "train_accuracy")
"""Metrics of the clients that are averaged unseen, by the names that apps commonly give them."""

_BITS = 20  # 2^-20 per coordinate: more room before a squared norm or distance could wrap


def cross_silo(
    *,
    credentials: Credentials | Path | str,
    num_byzantine: int,
    clip_norm: float,
    committee: Committee | None = None,
    privacy: RecordDP | None = None,
    metrics: Sequence[str] | None = None,
    sums: Mapping[str, Any] | None = None,
    **options: Unpack[StrategyOptions],
) -> SecureMultiKrum:
    """A few known organizations that do not show each other, nor the server, what they learn.

    `Authenticate` and `SecureKrum`: only enrolled silos count, the server sees the mean of those
    updates that Multi-Krum selects and no single one, and f silos may send anything.

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    num_byzantine : int
        f: how many silos may be faulty or hostile, >= 0. A round needs ``2 f + 3`` of them, and as
        many as the committee has members.
    clip_norm : float
        Longest step of a silo, L2 norm, > 0: somewhat more than an honest one has in the first
        rounds. `research` shows the norms.
    committee : Committee, optional
        By default seven members, of whom three open a sum and five must agree on it.
    privacy : RecordDP, optional
        Differential privacy of every record. The app has to train by DP-SGD (for example with
        `PrivateTrainingClient`); without it, what the released models tell about a record is not
        bounded.
    metrics : Sequence[str]
        Names of the clients' metrics that are averaged unseen. Each takes a place in every update,
        whether or not the app reports it; others stay on the clients.
    sums : Mapping[str, Any], optional
        Further arguments of `SecureKrum`.
    **options
        Further arguments of `StableFedAvg`, ``stages`` among them. Least numbers of nodes are
        raised to what a round needs.

    Returns
    -------
    SecureMultiKrum

    Notes
    -----
    Guarantee: who counts (ML-DSA signatures, roster); secrecy of single updates, also from those
    who record the traffic for a quantum computer; f arbitrary updates move the model no further
    than the bound of Multi-Krum. Against: the server, even if it lies, together with two members
    of the committee; f clients; the network. Not against: three members together; the silos that
    train on poisoned data as f + 1.

    Who sees what: the server learns pairwise distances and the mean of the selected; see
    `SecureKrum`. Cost: two further exchanges with the committee a round; every client sends
    ``8 (m - t + 1)`` bytes per coordinate, 40 with the default committee, where float32 takes 4.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = cross_silo(credentials=keys, num_byzantine=2, clip_norm=5.0)
    >>> strategy.min_available_nodes  # 2 f + 3
    7
    """
    committee = committee or COMMITTEE
    own = {"bits": _BITS, "metrics": METRICS}
    options = at_least(options, max(2 * num_byzantine + 3, committee.members))
    stages = [*options.get("stages", ()), *([privacy] if privacy else [])]
    if "fraction_evaluate" not in options and not any(s.traits & NOISY for s in stages):
        options = {"evaluation": Evaluation(), **options}
    return SecureMultiKrum(
        credentials=credentials,
        num_byzantine=num_byzantine,
        clip_norm=clip_norm,
        committee=committee,
        sums={**own, **sum_settings(SecureKrum, "sums", sums, metrics)},
        **first(options, *([privacy] if privacy else [])),
    )


def full_chain(
    *,
    credentials: Credentials | Path | str,
    num_byzantine: int,
    clip_norm: float,
    ratio: float = 0.01,
    committee: Committee | None = None,
    privacy: RecordDP | None = None,
    metrics: Sequence[str] | None = None,
    sums: Mapping[str, Any] | None = None,
    **options: Unpack[StrategyOptions],
) -> SecureMultiKrum:
    """Everything at once: `cross_silo`, and each round only a small public part of the model.

    Parameters
    ----------
    credentials, num_byzantine, clip_norm, committee, privacy, **options
        As in `cross_silo`. `clip_norm` bounds what is sent in one round: the chosen coordinates of
        the step, and of what was kept back before.
    ratio : float
        Share of the coordinates that a round deals with, 0 < ratio <= 1. Clients keep the others
        for later rounds, so that nothing is lost, but it waits 1 / (2 ratio) rounds on average: 50
        with 1 %, which is for runs of many hundred rounds. Take more for shorter ones.

    Returns
    -------
    SecureMultiKrum

    Notes
    -----
    Guarantee and adversaries: as for `cross_silo`. The coordinates are drawn from a public seed and
    tell nothing about a client. Distances are those of the chosen coordinates; what the distances
    of the whole would show can stay hidden for a round. Cost: `ratio` times that of `cross_silo`,
    0.4 bytes per coordinate with 1 %: a tenth of float32.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = full_chain(credentials=keys, num_byzantine=1, clip_norm=5.0, ratio=0.25)
    """
    return cross_silo(
        credentials=credentials,
        num_byzantine=num_byzantine,
        clip_norm=clip_norm,
        committee=committee,
        privacy=privacy,
        metrics=metrics,
        sums=sums,
        **first(options, _mask(ratio, options)),
    )


def cross_device(
    *,
    credentials: Credentials | Path | str,
    clip_norm: float,
    ratio: float = 0.01,
    committee: Committee | None = None,
    privacy: RecordDP | DistributedDP | None = None,
    metrics: Sequence[str] | None = None,
    sums: Mapping[str, Any] | None = None,
    **options: Unpack[StrategyOptions],
) -> SecureFedAvg:
    """Many devices that come and go, with little bandwidth: a secure mean of bounded steps.

    `Authenticate`, `SharedMask` and `SecureSum`: the server sees sums over many devices on a small
    public part of the model. Devices that were not there lately are asked less often (`Available`).

    Parameters
    ----------
    credentials, clip_norm, metrics, sums, **options
        As in `cross_silo`. Least numbers of nodes are raised to the committee's size.
    ratio : float
        As in `full_chain`.
    committee : Committee, optional
        As in `cross_silo`. With `DistributedDP` its `min_clients` should be as many devices as a
        round will surely have: noise is sized for that number.
    privacy : RecordDP or DistributedDP, optional
        As in `cross_silo`; or `DistributedDP` for whole devices, which no app needs to know about:
        the mod adds a share of the noise to each update.

    Returns
    -------
    SecureFedAvg

    Notes
    -----
    Guarantee: who counts, and secrecy of single updates, as for `cross_silo`; all devices count
    alike, and the committee opens the norm of each update, so that f hostile ones among n move the
    mean by at most ``f * clip_norm / n``, though each of them by that much. Against: the server,
    even if it lies, together with two members of the committee; the network. Not against: three
    members together, or many hostile devices: use `full_chain` where they can be a tenth of all.
    `DistributedDP` adds differential privacy against the server, but norms must stay closed then,
    and a hostile device is bound by the room for noise alone, ``clip_norm * (2 + 41 z)``; metrics
    of training stay on the devices.

    Who sees what: the server learns the sum and the norm of each update. Cost: two further
    exchanges with the committee a round; 0.4 bytes per coordinate from each device with 1 %; a
    member takes ``8 k`` bytes for each device, k being the number of chosen coordinates.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = cross_device(fraction_train=0.1, credentials=keys, clip_norm=2.0, ratio=0.05)
    """
    committee = committee or COMMITTEE
    own: dict[str, Any] = {"bits": _BITS, "weighted": False}
    if isinstance(privacy, DistributedDP):
        # A share of the noise stays within 40 standard deviations.
        room = clip_norm * (2 + 41 * privacy.noise_multiplier)
        own |= {"metrics": (), "bound": room}
    else:
        own |= {"metrics": METRICS, "enforce_norm": True}
    options = at_least(options, max(committee.members, committee.min_clients))
    options.setdefault("selection", Available())
    return SecureFedAvg(
        credentials=credentials,
        clip_norm=clip_norm,
        committee=committee,
        sums={**own, **sum_settings(SecureSum, "sums", sums, metrics)},
        **first(options, _mask(ratio, options), *([privacy] if privacy else [])),
    )


def research(
    *,
    num_byzantine: int,
    clip_norm: float,
    ratio: float | None = None,
    privacy: RecordDP | None = None,
    **options: Unpack[StrategyOptions],
) -> StableFedAvg:
    """The mathematics of `cross_silo` in the clear, for experiments: no keys, everything visible.

    `Clip` and `Robust` (Multi-Krum): the same scores, and the same mean up to the fixed-point grid
    but that n - f updates are averaged where `cross_silo` takes n - f - 2. The server sees every
    update, so that norms, scores and single clients can be studied, and clients may evaluate.
    Drawing of clients is reproducible.

    Parameters
    ----------
    num_byzantine : int
        f: how many clients may be hostile, >= 0.
    clip_norm : float
        As in `cross_silo`.
    ratio : float, optional
        As in `full_chain`; None sends everything.
    privacy, **options
        As in `cross_silo`. With `privacy` nothing is evaluated on the clients. Least numbers of
        nodes are raised to ``2 f + 3``.

    Returns
    -------
    StableFedAvg

    Notes
    -----
    Guarantee: f arbitrary updates move the model no further than the bound of Multi-Krum. Against:
    f clients. Not against: the server, the network, strangers. Who sees what: the server sees every
    update, and so does whoever reads the traffic. Cost: distances between all pairs of updates, on
    the server; see ``python -m benchmarks robust``.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation(clients=8).run(kind=research, num_byzantine=1, clip_norm=5.0)
    >>> outcome.error is None
    True
    """
    if "credentials" in options:
        raise ConfigError("credentials: research hides nothing and knows no keys; leave it out")
    options = at_least(options, 2 * num_byzantine + 3)
    own: list[Stage] = [Clip(clip_norm), Robust("multi_krum", num_byzantine)]
    if ratio is not None:
        own.append(_mask(ratio, options))
    if privacy is not None:
        own.append(privacy)
        options = without_evaluation(options)
    options.setdefault("seed", 0)
    return StableFedAvg(**first(options, *own))


def _mask(ratio: float, options: StrategyOptions) -> SharedMask:
    return SharedMask(Mask(ratio=ratio), seed=options.get("seed") or 0)
