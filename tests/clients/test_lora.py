"""Adapters: what travels, what is refused before training, and every protection around them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from qsfl_flower.asynchrony import WallClock
from qsfl_flower.clients.lora import Adapters, LoraClient, evaluate_tokens, lora_app, token_data
from qsfl_flower.clients.losses import IGNORED, TOKENS, loss_named, token_cross_entropy
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trained import set_trained_arrays, trained_arrays
from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.stages import Compress, RecordDP
from qsfl_flower.strategies import SecureFedAvg, StableFedAvg, cross_silo, full_chain
from qsfl_flower.testing import LocalFederation, learned
from qsfl_flower.wire import from_record
from tests.clients.support import noise
from tests.clients.tiny_models import LENGTH, VOCABULARY, Plain, tiny

CONFIG = TrainConfig(batch_size=8, learning_rate=1.0, epochs=2)
PRIVACY = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=4)


def texts(seed, count=12):
    """Return sequences that count upwards: what comes next can be learned."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, VOCABULARY, count), rng.integers(3, LENGTH + 3, count)
    pairs = zip(starts, lengths, strict=True)
    return [[int(t) % VOCABULARY for t in range(s, s + n)] for s, n in pairs]


def data(seed=0, **options):
    return token_data(texts(seed), texts(seed + 100, 4), length=LENGTH, **options)


def model(**options):
    method = options.pop("method", "ffa")
    named = {k: options.pop(k) for k in ("seed", "tokenizer") if k in options}
    return Adapters(Plain(**options), method=method, **named)


def client(of=None, **options):
    return LoraClient(of or model(), data(), CONFIG, seed=1, client_id=0, **options)


def fit(one, **told):
    return one.fit(one.get_parameters({}), {**model().announced(), "server-round": 1, **told})


class Silos(LocalFederation):
    """A federation of clients with adapters."""

    def __init__(self, clients, build=model, **options):
        self.build = build
        self.lora = lora_app(
            lambda context: (build(), data(int(context.node_config["partition-id"]))),
            CONFIG, mods=[], **options,
        )  # fmt: skip
        super().__init__(clients=clients)

    def _train(self, client, message):
        return self.lora(message, self.contexts[client])

    def start(self, strategy, rounds=2):
        start = ArrayRecord(self.build().state_dict())
        told = ConfigRecord(self.build().announced())
        with self.grid.time.for_strategies():
            result = strategy.start(
                self.grid, start, num_rounds=rounds, timeout=60.0, train_config=told
            )
        return {k: np.asarray(v) for k, v in from_record(result.arrays).items()}

    def loss(self, arrays):
        held = token_data(texts(99, 20), length=LENGTH)
        one = self.build()
        set_trained_arrays(one, arrays)
        return evaluate_tokens(one, held.x_train, held.y_train)["loss"]


def everybody(silos, **options):
    count = silos.clients
    return {
        "clock": WallClock(silos.grid.time.monotonic),
        "fraction_evaluate": 0.0, "min_available_nodes": count, "min_train_nodes": count, **options,
    }  # fmt: skip


def test_what_is_trained_travels_and_nothing_else():
    assert list(trained_arrays(model())) == ["lora_B.weight"]
    both = model(method="both")
    arrays = trained_arrays(both)
    assert list(arrays) == ["lora_A.weight", "lora_B.weight"]
    set_trained_arrays(both, {k: v + 1 for k, v in arrays.items()})
    assert np.array_equal(trained_arrays(both)["lora_B.weight"], np.ones((32, 2), np.float32))
    with pytest.raises(ConfigError, match="does not fit the model"):
        set_trained_arrays(both, {k: v[:, :1] for k, v in arrays.items()})
    counted = {"w": np.zeros(2), "fixed": np.zeros(2), "n": np.zeros((), np.int64)}
    assert list(trained_arrays(counted, {"fixed": "frozen"})) == ["w", "n"]
    with pytest.raises(ConfigError, match="nothing to send"):
        trained_arrays(Plain().requires_grad_(False))
    with pytest.raises(ConfigError, match="bfloat16"):
        trained_arrays(torch.nn.Linear(1, 1).bfloat16())


def test_a_table_that_is_trained_whole_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        trained_arrays(model())
        assert not caplog.records
        one = Plain()
        one.table.requires_grad_(True)
        trained_arrays(one)
    assert "the embeddings 'table' are trained whole: 37 rows" in caplog.text


def test_a_sequence_has_the_mean_of_its_tokens_and_weighs_like_any_other():
    outputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[1, 2, IGNORED], [3, IGNORED, IGNORED]])
    of = torch.nn.functional.cross_entropy
    first, second = of(outputs[0, :2], targets[0, :2]), of(outputs[1, :1], targets[1, :1])
    assert token_cross_entropy(outputs, targets) == pytest.approx(float(first + second) / 2)
    loss = loss_named(TOKENS)
    assert loss.total(outputs, targets) == pytest.approx(float(first + second))
    targets[0, 0] = outputs[0, 0].argmax()
    targets[0, 1] = (outputs[0, 1].argmax() + 1) % 5
    targets[1] = IGNORED
    assert loss.right(outputs, targets) == 0.5
    assert float(token_cross_entropy(outputs[1:], targets[1:])) == 0.0


def test_token_data_is_padded_and_shifted():
    found = token_data([[4, 5, 6], [7, 8, 9, 1, 2]], length=4)
    assert found.x_train.tolist() == [[4, 5, 6, -1], [7, 8, 9, 1]]
    assert found.y_train.tolist() == [[5, 6, IGNORED, IGNORED], [8, 9, 1, IGNORED]]
    classes = token_data([[4], [5]], [[6]], length=2, labels=([0, 2], [1]))
    assert (classes.task, classes.num_classes, classes.y_test.tolist()) == ("classes", 3, [1])
    for bad in ([[3]], [[3, -2]], [[]]):
        with pytest.raises(DataError, match="too short, or has a negative"):
            token_data(bad, length=4)


def test_the_fixed_halves_are_those_of_the_public_seed():
    first, second = (model(base=0).model.lora_A.weight for _ in range(2))
    assert torch.equal(first, second)
    assert not model().model.lora_B.weight.any()
    assert not torch.equal(first, model(seed=1).model.lora_A.weight)
    assert model().announced() != model(seed=1).announced()
    with pytest.raises(ConfigError, match="no adapters"):
        Adapters(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="method must be one of"):
        model(method="all")


def test_half_of_the_adapters_is_trained_in_each_alternating_round():
    one = client(model(method="alternating"))
    told = one.model.announced()
    for number, moves in ((1, "lora_B.weight"), (2, "lora_A.weight")):
        start = one.get_parameters({})
        start[1] = start[1] + np.float32(0.1)  # A has no gradient while B is zero
        after, _, _ = one.fit(start, {**told, "server-round": number})
        changed = [bool((a != b).any()) for a, b in zip(start, after, strict=True)]
        assert changed == [name == moves for name in one.model.state_dict()]
    assert [p.requires_grad for p in one.model.parameters() if p.requires_grad] == [True, True]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("lora-adapters", {"rank": 3}),
        ("lora-base", {"base": 1}),
        ("lora-base", {"seed": 5}),
        ("lora-method", {"method": "both"}),
        ("lora-tokenizer", {"tokenizer": "another"}),
    ],
)
def test_what_differs_from_the_announcement_is_named_before_training(key, other):
    one = client(model(**other))
    before = one.get_parameters({})
    arrays, examples, metrics = fit(one)
    assert (metrics["refused"], examples) == (key, 0)
    assert all((a == b).all() for a, b in zip(arrays, before, strict=True))


def test_a_server_that_announces_nothing_is_refused():
    one = client()
    assert one.fit(one.get_parameters({}), {"server-round": 1})[2]["refused"] == "lora-method"


def test_token_ids_beyond_the_vocabulary_are_named_before_training():
    small = model(vocabulary=20)
    refused = fit(client(small), **small.announced())[2]
    assert refused["refused"] == "lora-tokens"
    assert "above 19" in refused["refused-detail"]


def test_a_silo_with_another_base_is_counted_by_its_reason():
    silos = Silos(4)
    odd = lora_app(lambda context: (model(base=1), data()), CONFIG, mods=[])
    silos.lora = lambda message, context, lora=silos.lora: (
        odd if context.node_config["partition-id"] == 2 else lora
    )(message, context)
    watch = []

    class Watch:
        def __getattr__(self, name):
            return lambda *given: watch.append(given[0]) if name == "on_round" else None

    silos.start(
        StableFedAvg(
            stages=[silos.authenticate()], observer=Watch(), **everybody(silos, min_train_nodes=3)
        ),
        rounds=1,
    )
    assert {k: v for record in watch for k, v in record.rejected.items()} == {"lora-base": 1}


def test_adapters_are_learned_and_evaluated_per_token():
    silos = Silos(3)
    before = silos.loss(trained_arrays(model()))
    after = silos.start(StableFedAvg(stages=[silos.authenticate()], **everybody(silos)), rounds=3)
    assert list(after) == ["lora_B.weight"]
    assert silos.loss(after) < before - 0.3
    one = client()
    loss, count, told = one.evaluate([after["lora_B.weight"]], {})
    assert count == 4
    assert told["perplexity"] == pytest.approx(np.exp(loss))
    assert told["num-tokens"] == sum(min(len(t), LENGTH) - 1 for t in texts(100, 4))


def test_a_secure_sum_of_adapters_shows_no_silos_own():
    plain, hidden = Silos(5), Silos(5)
    open_view, view = plain.watch(), hidden.watch()
    wanted = plain.start(StableFedAvg(stages=[plain.authenticate()], **everybody(plain)), rounds=1)
    found = hidden.start(
        SecureFedAvg(credentials=hidden.credentials, **everybody(hidden)), rounds=1
    )
    assert np.allclose(found["lora_B.weight"], wanted["lora_B.weight"], atol=1e-4)
    sent = [
        next(iter(message.content.array_records.values()))
        for message in open_view.up
        if message.content.array_records
    ]
    updates = np.stack([from_record(record)["lora_B.weight"].ravel() for record in sent])
    assert learned(updates, open_view.bytes_up()) == [0, 1, 2, 3, 4]
    assert learned(updates, view.bytes_up()) == []


def attack(silos, who, factor=-50.0):
    """Let one silo send the opposite of what it learned, fifty times."""
    honest = silos.lora

    def app(message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] == who:
            record = reply.content.array_records["arrays"]
            record["lora_B.weight"] = Array(
                (factor * record["lora_B.weight"].numpy()).astype(np.float32)
            )
        return reply

    silos.lora = app


def test_multi_krum_leaves_out_a_silo_that_poisons_its_adapter():
    losses = []
    for robust in (False, True):
        silos = Silos(7)
        attack(silos, 3)
        how = everybody(silos)
        strategy = (
            cross_silo(credentials=silos.credentials, num_byzantine=1, clip_norm=100.0, **how)
            if robust
            else StableFedAvg(stages=[silos.authenticate()], **how)
        )
        losses.append(silos.loss(silos.start(strategy, rounds=1)))
    before = Silos(1).loss(trained_arrays(model()))
    assert losses[1] < before < losses[0] - 1


def test_the_full_chain_with_record_privacy_moves_the_chosen_part_of_an_adapter():
    silos = Silos(7, privacy=PRIVACY)
    strategy = full_chain(
        credentials=silos.credentials, num_byzantine=1, clip_norm=100.0, ratio=0.25,
        privacy=RecordDP(PRIVACY), **everybody(silos),
    )  # fmt: skip
    after = silos.start(strategy, rounds=1)
    assert np.isfinite(after["lora_B.weight"]).all()
    moved = np.count_nonzero(after["lora_B.weight"])
    assert 0 < moved <= 0.25 * after["lora_B.weight"].size


def test_top_k_sends_a_part_of_the_adapter():
    silos = Silos(3)
    strategy = StableFedAvg(
        stages=[silos.authenticate(), Compress(Scheme("topk", 0.5, values="float32"))],
        **everybody(silos),
    )
    after = silos.start(strategy, rounds=3)
    assert silos.loss(after) < silos.loss(trained_arrays(model()))


def test_dp_sgd_on_sequences_moves_by_noise_alone():
    calls = []
    with noise() as seen:
        one = client(privacy=PRIVACY)
        _, count, metrics = fit(one)
        calls = list(seen)
    assert (len(calls), count) == (PRIVACY.steps, 12)
    assert "train-loss" not in metrics
    assert metrics["dp-noise-multiplier"] == 1.0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", ["ffa", "both", "alternating"])
def test_models_of_transformers_train_their_adapters(kind, method):
    one = Adapters(tiny(kind), method=method, tokenizer="bytes")
    labels = (np.arange(12) % 3, np.arange(4) % 3) if kind == "bert" else None
    silo = LoraClient(
        one, data(labels=labels), CONFIG, seed=1, client_id=0, privacy=PRIVACY, at_once=4
    )
    names = list(one.state_dict())
    assert all("lora_B" in n for n in names) == (method == "ffa")
    assert not any(".default" in n for n in names)
    for number in (1, 2):
        arrays, count, _ = silo.fit(
            silo.get_parameters({}), {**one.announced(), "server-round": number}
        )
        assert count == 12
        assert all(np.isfinite(a).all() for a in arrays)
    loss, _, _ = silo.evaluate(arrays, {})
    assert np.isfinite(loss)


def test_the_adapter_of_a_federation_is_a_file_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    one, other = Adapters(tiny("gpt2"), method="both"), tiny("gpt2")
    moved = {k: v + np.float32(0.1) for k, v in trained_arrays(one).items()}
    set_trained_arrays(one, moved)
    one.model.save_pretrained(tmp_path)
    found = peft.utils.load_peft_weights(str(tmp_path))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in moved.items()}
    peft.set_peft_model_state_dict(other, {k: torch.from_numpy(v) for k, v in moved.items()})
    tokens = torch.arange(LENGTH)[None]
    assert torch.allclose(other(tokens).logits, one(tokens), atol=1e-6)


def test_adapters_of_embeddings_travel_without_the_table(caplog):
    one = Adapters(tiny("gpt2", targets=["wte", "c_attn"]))
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        arrays = trained_arrays(one)
    assert not caplog.records
    assert max(a.size for a in arrays.values()) < VOCABULARY * 16


def test_ranks_that_differ_are_named_for_models_of_peft():
    one, other = (Adapters(tiny("gpt2", rank=r)) for r in (2, 3))
    silo = LoraClient(one, data(), CONFIG, seed=1, client_id=0)
    refused = silo.fit(silo.get_parameters({}), {**other.announced(), "server-round": 1})[2]
    assert refused["refused"] == "lora-adapters"
    assert "rank 2" in refused["refused-detail"]
    assert "rank 3" in refused["refused-detail"]
