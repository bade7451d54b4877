"""Hugging Face: a classifier of texts, a tiny BERT from a configuration."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from transformers import AutoModelForSequenceClassification, BertConfig

client = ClientApp()
server = ServerApp()


def load(part):
    """120 texts of twelve words; whether a good word stands more often in them than a bad one."""
    rng = np.random.default_rng(part)
    words = rng.integers(2, 30, (120, 12))
    y = rng.integers(0, 2, 120)
    for text, label in zip(words, y, strict=True):
        text[rng.choice(12, 3, replace=False)] = 28 + label
    return torch.tensor(words), torch.tensor(y)


def get_model():
    """A classifier that nobody has trained."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = BertConfig(**sizes, **layers, num_labels=2)
    return AutoModelForSequenceClassification.from_config(config)


@client.train()
def train(msg: Message, context: Context):
    """Train on one's own texts."""
    model = get_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    words, y = load(context.node_config["partition-id"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(3):
        for rows in torch.arange(len(y)).split(20):
            loss = model(input_ids=words[rows], labels=y[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(y)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Train together."""
    model = get_model()
    strategy = FedAvg()
    rounds, first = context.run_config["num-server-rounds"], ArrayRecord(model.state_dict())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    words, y = load(1000)
    model.eval()
    with torch.no_grad():
        right = model(input_ids=words).logits.argmax(1) == y
    print(f"final accuracy {right.float().mean().item():.4f}")
