"""Gradients of single sequences: masks, tokens that do not count, caches, tied tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qsfl_flower.clients.batches import inputs_of
from qsfl_flower.clients.data import Normalization
from qsfl_flower.clients.per_example import ClippedGradients, made_up
from qsfl_flower.clients.per_example.functional import OneByOne
from qsfl_flower.clients.per_example.work import Work
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.training import evaluate_model, train
from tests.clients.tiny_models import LENGTH, VOCABULARY, tiny

ROWS = 5
IDS = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
MASK = (torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - ROWS, -1)[:, None]).long()
NEXT = torch.where(MASK.bool(), IDS.roll(-1, 1), -100)


def token_loss(outputs, target):
    """Return the mean over the tokens that count: of one sequence, its loss."""
    logits = getattr(outputs, "logits", outputs)
    if target.dim() == 1:
        return functional.cross_entropy(logits, target)
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)


def off(model, batch, target, loss=token_loss):
    """Return how far a clipped sum is from that of one at a time, relative; and the engine."""
    engine = ClippedGradients(model, made_up(batch), made_up(target), loss=loss)
    work = Work(model, loss, batch, target)
    clip = float(OneByOne().sum(work, 1.0).norms.median())  # some are clipped, some are not
    found, exact = engine.sum(batch, target, clip), OneByOne().sum(work, clip)
    whole = sum(float(g.double().square().sum()) for g in exact.gradients) ** 0.5
    away = max(float((a - b).norm()) for a, b in zip(found.gradients, exact.gradients, strict=True))
    return away / whole, engine.engine


class Reader(nn.Module):
    """A bag of words with a tied table, that also returns a cache and a mean over the batch."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids, attention_mask):
        words = self.table(input_ids) * attention_mask[..., None]
        logits = self.head(self.middle(words.cumsum(1)).tanh())
        return {"logits": logits, "cache": object(), "mean": logits.mean()}


def of_dict(outputs, target):
    return token_loss(outputs["logits"], target)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_caches_and_means_of_the_batch_among_the_outputs_do_no_harm():
    batch = {"input_ids": IDS, "attention_mask": MASK}
    away, _ = off(Reader(), batch, NEXT, of_dict)
    assert away < 1e-5

    class Without(Reader):
        def forward(self, **named):
            return {**super().forward(**named), "mean": None}

    away, engine = off(Without(), batch, NEXT, of_dict)
    assert away < 1e-5
    assert engine != "one by one"


def test_made_up_masks_are_masks():
    found = made_up({"input_ids": IDS[:0], "attention_mask": MASK[:0]})
    assert set(found["attention_mask"].unique().tolist()) == {0, 1}
    assert bool((found["attention_mask"][:, 0] == 1).all())
    assert set(found["input_ids"].unique().tolist()) == {0, 1, 2}
    assert len(made_up((IDS[:0], MASK[:0]))) == 2


def test_token_ids_stay_integers():
    scale = Normalization((0.5,), (0.25,))
    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(4 * LENGTH, 2))
    assert inputs_of(model, IDS, scale) is IDS
    x, y = IDS.numpy(), np.array([0, 1, 0, 1, 0])
    result = train(model, x, y, scale, TrainConfig(epochs=2, batch_size=3), seed=1)
    assert result.steps == 4
    loss, _ = evaluate_model(model, x, y, scale)
    with torch.no_grad():
        assert loss == pytest.approx(
            float(functional.cross_entropy(model(IDS).double(), torch.tensor(y)))
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("checkpoint", [None, "reentrant", "plain"])
def test_adapters_get_exact_gradients_with_masks_and_checkpoints(kind, checkpoint):
    model = tiny(kind).train()
    if checkpoint:
        new = getattr(model, "activation_checkpointing_enable", None)  # its name from release 6 on
        (new or model.gradient_checkpointing_enable)({"use_reentrant": checkpoint == "reentrant"})
        model.enable_input_require_grads()
    target = torch.arange(ROWS) % 3 if kind == "bert" else NEXT
    away, engine = off(model, {"input_ids": IDS, "attention_mask": MASK}, target)
    assert away < 1e-5
    assert engine == ("one by one" if checkpoint == "reentrant" else "by layer")


def test_tied_embeddings_that_are_trained_get_exact_gradients():
    model = tiny("gpt2", adapters=False).train()
    away, _ = off(model, {"input_ids": IDS, "attention_mask": MASK}, NEXT)
    assert away < 1e-5


def test_a_loss_that_the_model_computes_itself_is_that_of_one_sequence():
    model = tiny("gpt2").train()
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": NEXT}
    away, engine = off(model, batch, NEXT, lambda outputs, target: outputs.loss)
    assert away < 1e-5
    assert engine == "one by one"


def test_dropout_of_a_language_model_hides_no_mixing():
    model = tiny("bert", dropout=0.1).train()
    batch = {"input_ids": made_up(IDS), "attention_mask": made_up({"mask": MASK})["mask"]}
    engine = ClippedGradients(model, batch, made_up(torch.zeros(0).long()), loss=token_loss)
    assert engine.engine == "by layer"
