"""Adapters in a federation: what each method sends, what averaging costs it, what noise does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qsfl_flower.clients.lora import Adapters, LoraClient, Method, evaluate_tokens, token_data
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trained import set_trained_arrays, trained_arrays
from qsfl_flower.privacy.record import RecordPrivacy

NAME = "lora"
DESCRIPTION = "methods of averaging adapters of a small GPT-2: bytes, averaging, DP-SGD"

VOCABULARY, LENGTH, SILOS, TEXTS = 64, 16, 4, 48
METHODS: tuple[Method, ...] = ("ffa", "both", "alternating")

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per method, without noise and with it."""
    rounds = 2 if quick else 10
    return [_row(method, noise, rounds) for noise in (0.0, 1.0) for method in METHODS]


def build(method: Method) -> Adapters:
    """Return a model from a configuration, the same in every call but for the method."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        adapters = LoraConfig(
            r=4, lora_alpha=32, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
        )
        return Adapters(get_peft_model(GPT2LMHeadModel(config), adapters), method=method)


def texts(silo: int, count: int) -> list[list[int]]:
    """Return sequences that count in steps of one to three, each silo its own steps more often."""
    rng = np.random.default_rng(silo)
    steps = np.where(rng.random(count) < 0.7, 1 + silo % 3, rng.integers(1, 4, count))
    starts = rng.integers(0, VOCABULARY, count)
    return [
        [int(first + step * k) % VOCABULARY for k in range(LENGTH)]
        for first, step in zip(starts, steps, strict=True)
    ]


def _row(method: Method, noise: float, rounds: int) -> Row:
    privacy = (
        RecordPrivacy(clip_norm=1.0, noise_multiplier=noise, sampling_rate=0.25, steps=8)
        if noise
        else None
    )
    config = TrainConfig(
        batch_size=12, epochs=2, learning_rate=0.05 if noise else 0.01,
        optimizer="sgd" if noise else "adam",
    )  # fmt: skip
    silos = [
        LoraClient(
            build(method), token_data(texts(k, TEXTS), length=LENGTH), config, seed=1, client_id=k,
            privacy=privacy,
        )
        for k in range(SILOS)
    ]  # fmt: skip
    whole = build(method)
    held = token_data(texts(100, 60) + texts(101, 60) + texts(102, 60), length=LENGTH)
    told: dict[str, Any] = dict(whole.announced())
    gaps = []
    for number in range(1, rounds + 1):
        arrays = list(trained_arrays(whole).values())
        sent = [silo.fit(arrays, {**told, "server-round": number})[0] for silo in silos]
        before, products = product(whole), [product(silo.model) for silo in silos]
        mean = [np.mean(same, axis=0) for same in zip(*sent, strict=True)]
        set_trained_arrays(whole, dict(zip(whole.state_dict(), mean, strict=True)))
        exact = np.mean(products, axis=0)
        gaps.append(float(np.linalg.norm(product(whole) - exact) / np.linalg.norm(exact - before)))
    return {
        "method": method,
        "noise": noise,
        "kB up": round(sum(a.nbytes for a in mean) / 1e3, 1),
        "step off, first round": round(gaps[0], 3),
        "step off, last round": round(gaps[-1], 3),
        "held-out loss": round(evaluate_tokens(whole, held.x_train, held.y_train)["loss"], 3),
    }


def product(model: Any) -> np.ndarray[Any, Any]:
    """Return all products B A as one vector: what adapters add to the base."""
    parameters = dict(model.named_parameters())
    found = [
        (parameters[name.replace("lora_A", "lora_B")] @ first).detach().numpy().ravel()
        for name, first in parameters.items()
        if "lora_A" in name
    ]
    return np.concatenate(found).astype(np.float64)
