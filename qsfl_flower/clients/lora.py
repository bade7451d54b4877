"""Federations of adapters: language models of which low-rank matrices are trained.

Server and clients build the same model; only the trained matrices travel::

    def model():
        base = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=8, ...))
        return Adapters(base, seed=7, tokenizer=tokenizer.backend_tokenizer.to_str())

    app = lora_app(lambda context: (model(), token_data(texts_of(context), length=128)), config)
    strategy.start(
        grid,
        ArrayRecord(model().state_dict()),
        train_config=ConfigRecord(model().announced()),
    )
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.common import NDArrays, Scalar
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.dpsgd import DPSGD
from qsfl_flower.clients.losses import IGNORED, TOKENS, token_cross_entropy
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trained import trained_tensors
from qsfl_flower.clients.trainer import TrainingClient, number
from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.wire import DETAIL_KEY, REFUSED_KEY

Method = Literal["ffa", "both", "alternating"]

_TOGETHER = 16
"""Sequences of an evaluation that are in memory at a time."""


class Adapters(nn.Module):
    r"""A model of transformers with adapters of peft, which takes token ids and gives logits.

    Its ``state_dict`` holds what travels, and nothing else. An adapter adds :math:`s B A x` to
    what a layer computes of x; A is drawn from the seed, the same for everybody, and B begins at
    zero.

    Parameters
    ----------
    model : torch.nn.Module
        Takes ``input_ids`` and ``attention_mask``, and returns an object with ``logits``. Its
        parameters without gradient are the base.
    method : {"ffa", "both", "alternating"}
        ``ffa``: A stays as it was drawn (FFA-LoRA): only B travels, and the mean of the clients'
        matrices is the matrix of their mean. ``both``: A and B are averaged apart. ``alternating``:
        B is trained in odd rounds, A in even ones (RoLoRA).
    seed : int
        Public seed of A, >= 0.
    tokenizer : str
        The tokenizer's whole description, such as its JSON; compared between devices by a digest.

    Raises
    ------
    ConfigError
        If the method is unknown, or the model has no adapters.

    References
    ----------
    Y. Sun, Z. Li, Y. Li, B. Ding, "Improving LoRA in privacy-preserving federated learning", 2024.
    arXiv:2403.12313.
    S. Chen et al., "Robust federated finetuning of LLMs via alternating optimization of LoRA",
    2025. arXiv:2502.01755.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Module()  # in the place of a model of peft
    >>> layer.lora_A, layer.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    >>> list(Adapters(layer, seed=7).state_dict())
    ['lora_B.weight']
    """

    def __init__(
        self, model: nn.Module, *, method: Method = "ffa", seed: int = 0, tokenizer: str = ""
    ) -> None:
        super().__init__()
        if method not in get_args(Method):
            raise ConfigError(f"method must be one of {get_args(Method)}, found {method!r}")
        self.model, self.method = model, method
        first, second = (
            {n: p for n, p in model.named_parameters() if f"lora_{x}" in n or f"embedding_{x}" in n}
            for x in "AB"
        )
        if not first or len(first) != len(second):
            raise ConfigError("the model has no adapters of peft (parameters lora_A and lora_B)")
        self._halves = list(first.values()), list(second.values())
        with torch.no_grad():
            for place, matrix in enumerate(self._halves[0]):
                drawn = np.random.default_rng([seed, place]).uniform(-1, 1, matrix.shape)
                matrix.copy_(torch.from_numpy(drawn / math.sqrt(matrix.shape[1])))
            for matrix in self._halves[1]:
                matrix.zero_()
        for matrix in self._halves[0]:
            matrix.requires_grad_(method != "ffa")
        self._sent = trained_tensors(model)
        if (config := getattr(model, "config", None)) is not None:
            config.use_cache = False
        self._tokenizer = hashlib.sha256(tokenizer.encode()).hexdigest()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (N, T, V) or (N, classes); negative ids are padding, which is masked."""
        mask = tokens >= 0
        outputs = self.model(input_ids=tokens.clamp(min=0), attention_mask=mask.long())
        return outputs.logits  # type: ignore[no-any-return]

    def state_dict(  # type: ignore[override]
        self, *args: Any, keep_vars: bool = False, **named: Any
    ) -> dict[str, Any]:
        """Return what travels, by the names that peft gives it in a file of adapters."""
        return {k: v if keep_vars else v.detach() for k, v in self._sent.items()}

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the base knows."""
        return len(self.model.get_input_embeddings().weight)  # type: ignore[operator]

    def announced(self) -> dict[str, str]:
        """Return what every device has to have in common, for the strategy's ``train_config``."""
        return {
            "lora-method": self.method,
            "lora-adapters": self._shape(),
            "lora-base": self.base,
            "lora-tokenizer": self._tokenizer,
        }

    @contextmanager
    def training_in(self, server_round: int) -> Iterator[None]:
        """Let that half of the adapters be trained whose turn it is."""
        if self.method != "alternating":
            yield
            return
        resting = self._halves[server_round % 2 == 0]
        for matrix in resting:
            matrix.requires_grad_(False)
        try:
            yield
        finally:
            for matrix in resting:
                matrix.requires_grad_(True)

    def _shape(self) -> str:
        configs = getattr(self.model, "peft_config", {})
        scales = [f"rank {c.r}, alpha {c.lora_alpha}" for c in configs.values()]
        shapes = [list(p.shape) for p in self._halves[1]]
        digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
        ranks = sorted({shape[1] for shape in shapes})
        told = "; ".join(scales) or f"rank {', '.join(map(str, ranks))}"
        return f"{told}, {len(shapes)} layers ({digest})"

    @cached_property
    def base(self) -> str:
        """Digest of all that never travels: the frozen base, and A where it is fixed."""
        sent = {value.data_ptr() for value in self._sent.values()}
        digest = hashlib.sha256()
        state = self.model.state_dict()
        for name in sorted(name for name, value in state.items() if value.data_ptr() not in sent):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def token_data(
    train: Sequence[Sequence[int]],
    test: Sequence[Sequence[int]] = (),
    *,
    length: int,
    labels: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Dataset:
    """Return one client's sequences of token ids; one sequence is one record.

    Parameters
    ----------
    train, test : sequence of sequences of int
        Token ids, >= 0. What is longer than `length` is cut off; at least one id each, two if the
        next token is predicted.
    length : int
        Tokens of a record, >= 2.
    labels : pair of sequences of int, optional
        Classes of the sequences, >= 0; without them, each token's target is the next one.

    Raises
    ------
    DataError
        If a sequence is too short, or an id is negative.

    Examples
    --------
    >>> token_data([[4, 5, 6]], length=4).y_train.tolist()
    [[5, 6, -100, -100]]
    """
    parts: list[np.ndarray[Any, Any]] = []
    for texts, given in zip((train, test), labels or (None, None), strict=True):
        x = np.full((len(texts), length), -1, np.int64)
        y = np.full((len(texts), length), IGNORED, np.int64)
        for row, ids in enumerate(texts):
            kept = np.asarray(ids[:length], dtype=np.int64)
            if len(kept) < (2 if given is None else 1) or kept.min() < 0:
                raise DataError(f"sequence {row} is too short, or has a negative token id")
            x[row, : len(kept)] = kept
            y[row, : len(kept) - 1] = kept[1:]
        parts += [x, y if given is None else np.asarray(given, dtype=np.int64)]
    classes = 1 + max((int(y.max()) for y in parts[1::2] if y.size), default=0)
    return Dataset(
        "text", parts[0], parts[1], parts[2], parts[3], (length,), classes, None, "token ids",
        Normalization((0.0,), (1.0,)), "tokens" if labels is None else "classes",
    )  # fmt: skip


class LoraClient(TrainingClient):
    """A `TrainingClient` that trains adapters, if its model is the one that the server announces.

    Parameters
    ----------
    model : Adapters
        The device's own.
    data : Dataset
        As `token_data` gives it.
    config : TrainConfig
        How to train; for the next token the loss is `token_cross_entropy` whatever it says.
    privacy : RecordPrivacy, optional
        Protects every sequence by DP-SGD.
    at_once : int or None
        Sequences whose gradients are in memory at a time, at most; >= 1.
    seed, client_id
        As for `TrainingClient`.

    Notes
    -----
    Who sees what: as for `TrainingClient` and `PrivateTrainingClient`. The unit of privacy is one
    sequence: a document that was cut into several, or an author of several, is less protected.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Module()  # in the place of a model of peft
    >>> layer.lora_A, layer.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    >>> from qsfl_flower.clients import Adapters, TrainConfig, token_data
    >>> data = token_data([[4, 5, 6]], length=4)
    >>> client = LoraClient(Adapters(layer), data, TrainConfig(), seed=1, client_id=0)
    >>> told = Adapters(layer, method="both").announced()
    >>> client.fit(client.get_parameters({}), told)[2]["refused"]
    'lora-method'
    """

    def __init__(
        self,
        model: Adapters,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        privacy: RecordPrivacy | None = None,
        at_once: int | None = None,
    ) -> None:
        tokens = data.task == "tokens"
        self._lora = model
        loss = token_cross_entropy if tokens else functional.cross_entropy
        super().__init__(
            model, data, replace(config, loss=TOKENS) if tokens else config, seed=seed,
            client_id=client_id,
            records=None if privacy is None else DPSGD(privacy, loss, at_once),
        )  # fmt: skip

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train as `TrainingClient` does; refuse before it what does not fit this device's model.

        Returns
        -------
        parameters, num_examples, metrics
            Those given, 0 and the reason of a refusal, where something does not fit.
        """
        if (refused := self._refused(config)) is not None:
            return parameters, 0, {REFUSED_KEY: refused[0], DETAIL_KEY: refused[1]}
        with self._lora.training_in(int(number(config, "server-round", 1, 0))):
            return super().fit(parameters, config)

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Return loss, number of sequences, and the accuracy; see `evaluate_tokens`."""
        if self._data.task != "tokens" or not len(self._data.y_test):
            return super().evaluate(parameters, config)
        self._load(parameters)
        told = evaluate_tokens(self._lora, self._data.x_test, self._data.y_test)
        return told.pop("loss"), len(self._data.y_test), {**told}

    def _refused(self, config: Mapping[str, Scalar]) -> tuple[str, str] | None:
        """Return reason and sentence if training must not begin.

        Of the texts they tell at most that an id is beyond the vocabulary of the device's own base.
        """
        for key, own in self._lora.announced().items():
            if config.get(key) != own:
                said = str(config.get(key, "nothing"))
                what = key.removeprefix("lora-")
                return key, f"the {what} of this device: {own:.80}; the server's: {said:.80}"
        ids = (self._data.x_train, self._data.x_test)
        if any(x.size and int(x.max()) >= self._lora.vocabulary for x in ids):
            most = self._lora.vocabulary - 1
            return "lora-tokens", f"the device's texts have token ids above {most}, the base's last"
        return None


def evaluate_tokens(
    model: nn.Module, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Return loss and accuracy per token, and what they rest on.

    Parameters
    ----------
    model : torch.nn.Module
        Takes token ids and gives logits, (N, T, V).
    x, y : ndarray of int64, shape (N, T)
        As `token_data` gives them; at least one token counts.

    Returns
    -------
    dict
        ``loss``: the mean over all tokens that count, each of which weighs the same; ``perplexity``
        is its exponential; ``accuracy``; ``num-tokens``.
    """
    total, right, count = 0.0, 0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(y), _TOGETHER):
            target = torch.tensor(y[start : start + _TOGETHER])
            logits = model(torch.tensor(x[start : start + _TOGETHER])).double()
            counted = target != IGNORED
            loss = functional.cross_entropy(logits[counted], target[counted], reduction="sum")
            total += float(loss)
            right += int((logits.argmax(-1) == target)[counted].sum())
            count += int(counted.sum())
    model.train(training)
    mean = total / max(count, 1)
    return {
        "loss": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "accuracy": right / max(count, 1),
        "num-tokens": float(count),
    }


def lora_app(
    make: Callable[[Context], tuple[Adapters, Dataset]],
    config: TrainConfig,
    *,
    privacy: RecordPrivacy | None = None,
    seed: int = 0,
    mods: list[Mod] | None = None,
) -> ClientApp:
    """Make a ClientApp that trains adapters.

    Parameters
    ----------
    make : Callable[[Context], tuple[Adapters, Dataset]]
        Returns the device's model and texts; called for every message.
    config, privacy, seed
        As for `LoraClient`.
    mods : list[Mod], optional
        As for `numpy_client_app`.

    Examples
    --------
    >>> from qsfl_flower.clients import TrainConfig
    >>> app = lora_app(lambda context: (model(), texts_of(context)), TrainConfig())
    """

    def client(context: Context) -> LoraClient:
        name = str(context.node_config.get("partition-id", context.node_id))
        return LoraClient(*make(context), config, seed=seed, client_id=name, privacy=privacy)

    return numpy_client_app(client, mods)
