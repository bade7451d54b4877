"""A client for devices with better things to do: it asks, adapts, pauses and takes up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.mobile_session import Device
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.clients.training import TrainConfig

if TYPE_CHECKING:
    from qsfl_flower.clients.dpsgd import RecordTraining

__all__ = ["Device", "MobileClient"]


class MobileClient(TrainingClient):
    r"""Train on a device as far as its owner, its battery and its memory allow.

    * It refuses a round, with a named reason, where the conditions to start do not hold. When they
      cease to hold it saves its training and refuses too; asked again, it goes on where it stopped.
      Killed at any moment it does the same from its last checkpoint. The update that comes of it is
      bit for bit the one of undisturbed training.
    * Batches that do not fit its memory are worked on in parts: slower, with the same result. The
      need is measured on the device, once for each model.
    * If the server has moved on from :math:`x_s` to :math:`x_t` meanwhile, the difference that
      training made to :math:`x_s` is put on top of :math:`x_t`, up to `Device.max_staleness`
      rounds.

    A refusal returns the given parameters, 0, and the texts ``refused`` and ``refused-detail``. The
    metric ``micro-batch`` tells in which parts batches were worked on, ``resumed-step`` and
    ``staleness`` what was taken up again. ``deadline`` in the configuration of `fit` bounds the
    seconds, > 0.

    Parameters
    ----------
    model, data, config, seed, client_id, declare_labels, records
        As for `TrainingClient`. With DP-SGD `Workload` counts steps in place of epochs.
    device : Device
        What it runs on. `PersonalClient` and `ScaffoldClient` take one as well.

    Notes
    -----
    Who sees what: the server sees what it sees of a `TrainingClient`, and the reason of a refusal:
    that a device's battery is low or that it is in use tells something about its owner.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from qsfl_flower.clients.device import Reading
    >>> low = TraceMonitor(lambda now: Reading(battery=0.05), start=0.0, examples_per_second=100.0)
    >>> device = Device(DeviceProfile(2000.0, 4, DeviceClass.MID), low, Conditions(unmetered=False))
    >>> client = MobileClient(
    ...     model, data, TrainConfig(), seed=1, client_id="client-0", device=device
    ... )
    >>> arrays, examples, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    >>> metrics["refused"]
    'device-battery-low'
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        device: Device,
        declare_labels: bool = False,
        records: RecordTraining | None = None,
    ) -> None:
        super().__init__(
            model, data, config, seed=seed, client_id=client_id, declare_labels=declare_labels,
            records=records, device=device,
        )  # fmt: skip
