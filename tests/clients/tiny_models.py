"""Language models of two small layers, built from a configuration: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch

VOCABULARY, LENGTH = 37, 8


def tiny(kind, rank=2, adapters=True, dropout=0.0, targets=None):
    """Return a model of transformers, with adapters of peft that are not zero."""
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    made = {"gpt2": _gpt2, "llama": _llama, "bert": _bert}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, layers = made(transformers, dropout)
        if adapters:
            settings = peft.LoraConfig(
                r=rank,
                target_modules=targets or layers,
                lora_dropout=dropout,
                fan_in_fan_out=kind == "gpt2",
            )
            model = peft.get_peft_model(model, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def _gpt2(transformers, dropout):
    settings = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(settings), ["c_attn", "c_fc"]


def _llama(transformers, dropout):
    settings = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LENGTH,
        attention_dropout=dropout,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(settings), ["q_proj", "v_proj", "up_proj"]


def _bert(transformers, dropout):
    settings = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=LENGTH, num_labels=3,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(settings), ["query", "value"]
