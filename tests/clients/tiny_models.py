"""Language models of two small layers, built from a configuration: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

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


class Plain(torch.nn.Module):
    """A bag of words with one adapter, as models of peft are called; it needs no package."""

    def __init__(self, rank=2, base=0, vocabulary=VOCABULARY, width=32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(base)
            self.table = torch.nn.Embedding(vocabulary, width).requires_grad_(False)
            self.middle = torch.nn.Linear(width, width).requires_grad_(False)
            self.lora_A = torch.nn.Linear(width, rank, bias=False)
            self.lora_B = torch.nn.Linear(rank, width, bias=False)
            self.head = torch.nn.Linear(width, vocabulary).requires_grad_(False)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        words = (self.table(input_ids) * attention_mask[..., None]).cumsum(1)
        hidden = (self.middle(words) + 2 * self.lora_B(self.lora_A(words))).tanh()
        return Outputs(4 * self.head(hidden))


@dataclass
class Outputs:
    """What a model of transformers returns."""

    logits: torch.Tensor
