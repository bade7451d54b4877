"""How a client personalizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.errors import ConfigError

Method = Literal["fine-tune", "maml", "per-fedavg", "reptile", "fedper", "fedrep", "ditto"]
METHODS: tuple[Method, ...] = (
    "fine-tune", "maml", "per-fedavg", "reptile", "fedper", "fedrep", "ditto",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Personalization:
    r"""How a client personalizes.

    Parameters
    ----------
    method : str
        ``fine-tune``: train as ever, take a few steps on the device's own examples before use.
        ``maml``: send the meta-gradient of that, so that the common model becomes a good start.
        ``per-fedavg``: several meta-steps on the device in a round. ``reptile``: plain steps
        towards the device's own optimum; the server goes a part of the way. ``fedper``,
        ``fedrep``: the layers `head` stay on the device; fedrep trains them before the rest.
        ``ditto``: a model of the device's own, held near the common one by `proximal`.
    inner_rate : float
        Step size of adaptation, > 0.
    inner_steps : int
        Steps of adaptation, >= 1.
    meta_rate : float
        Step size of the meta-gradient, > 0.
    meta_steps : int
        Meta-steps in a round, >= 1; 1 for maml.
    meta_batch : int
        Examples drawn for each part of a meta-step, >= 1.
    order : {"second", "first", "hessian-free"}
        Whether meta-gradients know the curvature: exactly, not at all, or by a difference of
        gradients (for per-fedavg, with one inner step).
    query_share : float
        Share of the training examples that meta-learning keeps for the query, in (0, 1).
    head : tuple of str
        Names of parameters, or beginnings of them, that stay on the device.
    proximal : float
        Weight of Ditto's pull towards the common model, >= 0.

    References
    ----------
    C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep
    networks", 2017. arXiv:1703.03400 (MAML).
    A. Fallah, A. Mokhtari, A. Ozdaglar, "Personalized federated learning with theoretical
    guarantees: a model-agnostic meta-learning approach", 2020. arXiv:2002.07948 (Per-FedAvg).
    A. Nichol, J. Achiam, J. Schulman, "On first-order meta-learning algorithms", 2018.
    arXiv:1803.02999 (Reptile).
    M. G. Arivazhagan et al., "Federated learning with personalization layers", 2019.
    arXiv:1912.00818 (FedPer).
    L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai, "Exploiting shared representations for
    personalized federated learning", 2021. arXiv:2102.07078 (FedRep).
    T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: fair and robust federated learning through
    personalization", 2021. arXiv:2012.04221.
    """

    method: Method = "fine-tune"
    inner_rate: float = 0.05
    inner_steps: int = 5
    meta_rate: float = 0.05
    meta_steps: int = 1
    meta_batch: int = 20
    order: Literal["second", "first", "hessian-free"] = "second"
    query_share: float = 0.5
    head: tuple[str, ...] = ()
    proximal: float = 0.1

    def __post_init__(self) -> None:
        single = self.method != "maml" or self.meta_steps == 1
        free = self.order != "hessian-free" or (
            self.method == "per-fedavg" and self.inner_steps == 1
        )
        rules = (
            ("method", self.method in METHODS, f"one of {', '.join(METHODS)}"),
            ("inner_rate", self.inner_rate > 0, "> 0"),
            ("inner_steps", self.inner_steps >= 1, ">= 1"),
            ("meta_rate", self.meta_rate > 0, "> 0"),
            ("meta_steps", self.meta_steps >= 1, ">= 1"),
            ("meta_steps", single, "1 for maml; per-fedavg takes several"),
            ("meta_batch", self.meta_batch >= 1, ">= 1"),
            ("order", self.order in ("second", "first", "hessian-free"), "second, first or "
             "hessian-free"),
            ("order", free, "hessian-free only for per-fedavg with one inner step"),
            ("query_share", 0 < self.query_share < 1, "in (0, 1)"),
            ("head", bool(self.head) or self.method not in ("fedper", "fedrep"), "the names of the "
             "layers that stay on the device"),
            ("proximal", self.proximal >= 0, ">= 0"),
        )  # fmt: skip
        for field, valid, allowed in rules:
            if not valid:
                raise ConfigError(f"{field} must be {allowed}, found {getattr(self, field)!r}")

    def check_records(self, noisy: bool, steps: int) -> None:
        """Refuse what would show single records, although training bounds what each of them does.

        Parameters
        ----------
        noisy : bool
            Whether all that training moves has noise in it already.
        steps : int
            Steps of a round.

        Raises
        ------
        ConfigError
            With the reason and what to use instead.
        """
        if self.method in ("maml", "per-fedavg"):
            raise ConfigError(
                f"method {self.method!r} adapts to records before it takes the gradient of others, "
                "so that one record changes the gradients of all and no bound for each is known; "
                "use reptile, fine-tune, fedper, fedrep or ditto"
            )
        if self.method in ("fedper", "fedrep") and not noisy:
            raise ConfigError(
                f"method {self.method!r} would train the layers that stay by sums without noise, "
                "on which all that is sent later depends; use stage record_dp, ditto or fine-tune"
            )
        if self.method == "fedrep" and steps < 2:
            raise ConfigError(
                "method 'fedrep' divides the noisy steps of a round between the layers that stay "
                "and those that are sent; set steps to 2 or more, or use fedper"
            )

    def check_controls(self) -> None:
        """Refuse methods whose updates are no sums of plain steps, which SCAFFOLD corrects.

        Raises
        ------
        ConfigError
            With the reason and what to use instead.
        """
        instead = "use fedper, fedrep, ditto or fine-tune, or another strategy"
        if self.method in ("maml", "per-fedavg"):
            raise ConfigError(
                f"method {self.method!r} sends meta-gradients, and the control variates of "
                "strategy 'scaffold' are means of plain gradients, which say nothing about how "
                f"these differ between clients; {instead}"
            )
        if self.method == "reptile":
            raise ConfigError(
                "method 'reptile' learns from what makes the steps of each client its own, which "
                f"is what the control variates of strategy 'scaffold' take out of them; {instead}"
            )

    def stays(self, name: str) -> bool:
        """Return whether a parameter of this name stays on the device."""
        return self.method in ("fedper", "fedrep") and name.startswith(self.head)
