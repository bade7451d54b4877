"""SCAFFOLD on the client: local steps that are corrected for what makes this client different."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import nn

from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.session import Session
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.clients.training import LocalTraining, TrainConfig, TrainResult
from qsfl_flower.errors import ConfigError
from qsfl_flower.personalization import Personalization
from qsfl_flower.wire import from_record, to_record

if TYPE_CHECKING:
    from qsfl_flower.clients.dpsgd import RecordTraining
    from qsfl_flower.clients.mobile_session import Device

STATE = "qsfl-scaffold"
"""Record in Flower's client state that holds the client's control variate."""


class ScaffoldClient(PersonalClient):
    r"""Train with control variates.

    .. math::
        y \leftarrow y - \eta\,(g_i(y) - c_i + c), \qquad
        c_i^+ = c_i - c + \frac{x - y_K}{K \eta}

    c comes behind the model in the instruction, one array for each floating-point array of the
    model; :math:`c + c_i^+ - c_i` goes back in its place, so that the difference to what was sent
    is what the server averages. The strategy's half is
    `qsfl_flower.strategies.ScaffoldFedAvg`.

    Parameters
    ----------
    model, data, seed, client_id, declare_labels
        As for `TrainingClient`.
    config : TrainConfig
        With plain ``sgd``: the formula for :math:`c_i^+` assumes it.
    state : RecordDict
        The client's memory: ``context.state`` of Flower. It holds :math:`c_i`.
    personalization : Personalization, optional
        A model of the device's own, as for `PersonalClient`. Layers that stay have no control
        variate, since no other client's steps could be followed there; those that are sent are
        corrected as ever. Ditto's own model is trained without correction.
    records : DPSGD, optional
        Steps are noisy; all that a control variate is made of are models before and after them, so
        that it costs no privacy of its own (Noble, Bellet, Dieuleveut 2022).
    device : Device, optional
        As for `TrainingClient`.

    References
    ----------
    S. P. Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning",
    2020. arXiv:1910.06378 (option II).
    M. Noble, A. Bellet, A. Dieuleveut, "Differentially private federated learning on heterogeneous
    data", 2022. arXiv:2111.09278 (DP-SCAFFOLD).

    Notes
    -----
    Who sees what: the server sees two differences instead of one, and twice the bytes travel both
    ways. :math:`c_i` itself stays on the device, but the server can add up its changes.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from flwr.app import RecordDict
    >>> client = ScaffoldClient(
    ...     model, data, TrainConfig(), seed=1, client_id="client-0", state=RecordDict()
    ... )
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        state: RecordDict,
        personalization: Personalization | None = None,
        declare_labels: bool = False,
        records: RecordTraining | None = None,
        device: Device | None = None,
    ) -> None:
        if config.optimizer != "sgd" or config.momentum or config.weight_decay:
            raise ConfigError(
                "scaffold needs optimizer 'sgd' without momentum and weight decay: its control "
                "variates are mean gradients of such steps"
            )
        if records is not None and not records.noisy:
            raise ConfigError(
                "scaffold cannot train by sums of gradients without noise: the control variate "
                "would keep what no noise covers; use DPSGD"
            )
        if personalization is not None:
            personalization.check_controls()
        super().__init__(
            model, data, config, seed=seed, client_id=client_id, state=state,
            personalization=personalization or Personalization(), declare_labels=declare_labels,
            records=records, device=device,
        )  # fmt: skip
        self._personal = personalization is not None
        self._shift: dict[str, NDArray[Any]] = {}

    def _train_round(self, session: Session) -> tuple[NDArrays, TrainResult]:
        """Train from the given model and control variate."""
        given, controls = self._split(session.base)
        own = self._own(controls)
        names = [k for k, v in self._model.state_dict().items() if v.is_floating_point()]
        learned = [k for k, p in self._model.named_parameters() if p.requires_grad]
        learned = [name for name in learned if not self._how.stays(name)]
        shift = {n: c - o for n, c, o in zip(names, controls, own, strict=True)}
        self._shift = {name: shift[name] for name in learned}
        trained, result = super()._train_round(session)
        if result.num_examples == 0:
            return session.base, result
        length = result.steps * self._config.rate(session.server_round)
        floats = [(x, y) for x, y in zip(given, trained, strict=True) if x.dtype.kind == "f"]
        new = [
            next_control(o, c, x, y, length) if name in learned else o
            for name, o, c, (x, y) in zip(names, own, controls, floats, strict=True)
        ]
        self._state[STATE] = to_record(dict(zip(names, new, strict=True)))
        told = [c + (n - o) for c, n, o in zip(controls, new, own, strict=True)]
        return [*trained, *told], result

    def _training(
        self, session: Session, config: TrainConfig | None = None, **options: Any
    ) -> LocalTraining:
        """Correct the steps of what is sent."""
        moved = [(k, p) for k, p in self._model.named_parameters() if p.requires_grad]
        options["correction"] = [
            torch.tensor(self._shift[k]) if k in self._shift else torch.zeros_like(p)
            for k, p in moved
        ]
        return super()._training(session, config, **options)

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the model, and the device's own if it has one, without control variates."""
        if self._personal:
            return super().evaluate(parameters, config)
        return TrainingClient.evaluate(self, parameters, config)

    def _load(self, parameters: NDArrays) -> None:
        super()._load(self._split(parameters)[0])

    def _split(self, parameters: NDArrays) -> tuple[NDArrays, NDArrays]:
        state = self._model.state_dict()
        floats = sum(v.is_floating_point() for v in state.values())
        if len(parameters) != len(state) + floats:
            raise ConfigError(
                f"scaffold: {len(parameters)} arrays were sent; the model has {len(state)} and "
                f"{floats} control variates belong to it: use ScaffoldFedAvg on the server"
            )
        return parameters[: len(state)], parameters[len(state) :]

    def _own(self, controls: NDArrays) -> NDArrays:
        record = self._state.array_records.get(STATE)
        if record is None:
            return [np.zeros_like(c) for c in controls]
        return list(from_record(record).values())


def next_control(
    own: NDArray[Any], common: NDArray[Any], start: NDArray[Any], end: NDArray[Any], length: float
) -> NDArray[Any]:
    r"""Return :math:`c_i - c + (x - y_K) / (K \eta)`.

    Parameters
    ----------
    own, common, start, end : numpy.ndarray
        :math:`c_i`, c, x and :math:`y_K`, of one shape.
    length : float
        Number of steps times the step size, > 0.
    """
    slope = (start.astype(np.float64) - end) / length
    return np.asarray(own - common.astype(np.float64) + slope, dtype=own.dtype)
