"""Tables as fastai's tabular learner takes them: categories, numbers, batch norm, one-cycle."""

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

client = ClientApp()
server = ServerApp()


def load(part):
    """150 people: trade and town, age and hours; whether they earn much."""
    rng = np.random.default_rng(part)
    table = pd.DataFrame(
        {
            "trade": pd.Categorical.from_codes(rng.integers(0, 3, 150), ["smith", "baker", "cook"]),
            "town": pd.Categorical.from_codes(rng.integers(0, 5, 150), list("abcde")),
            "age": rng.uniform(18, 70, 150),
            "hours": rng.normal(38, 8, 150),
        }
    )
    score = table["trade"].cat.codes * 1.5 + (table["age"] - 44) / 12 + (table["hours"] - 38) / 8
    return table, torch.tensor((score > 1.5).to_numpy(), dtype=torch.long)


class TabularModel(nn.Module):
    """Embeddings of categories beside normalized numbers."""

    def __init__(self):
        super().__init__()
        self.embeds = nn.ModuleList([nn.Embedding(3, 2), nn.Embedding(5, 3)])
        self.bn_cont = nn.BatchNorm1d(2)
        self.layers = nn.Sequential(
            nn.Linear(7, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.05), nn.Linear(16, 2)
        )

    def forward(self, table):
        """Scores of a table's rows."""
        codes = [torch.tensor(table[c].cat.codes.to_numpy()).long() for c in ("trade", "town")]
        numbers = torch.tensor(table[["age", "hours"]].to_numpy(), dtype=torch.float32)
        inputs = [embed(c) for embed, c in zip(self.embeds, codes, strict=True)]
        return self.layers(torch.cat([*inputs, self.bn_cont(numbers)], dim=1))


def fit_one_cycle(model, table, y, epochs):
    """Train with a rising and falling step."""
    optimizer = torch.optim.AdamW(model.parameters())
    batches = [slice(i, i + 50) for i in range(0, len(y), 50)]
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, total_steps=epochs * len(batches))
    model.train()
    for _ in range(epochs):
        for rows in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(table.iloc[rows]), y[rows])
            loss.backward()
            optimizer.step()
            cycle.step()
    return loss.item()


@client.train()
def train(msg: Message, context: Context):
    """Train on one's own table."""
    torch.manual_seed(0)
    model = TabularModel()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    table, y = load(context.node_config["partition-id"])
    loss = fit_one_cycle(model, table, y, 5)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(y)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Train together."""
    torch.manual_seed(0)
    model = TabularModel()
    strategy = FedAvg()
    rounds = context.run_config["num-server-rounds"]
    first = ArrayRecord(model.state_dict())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    model.eval()
    table, y = load(1000)
    accuracy = (model(table).argmax(1) == y).float().mean().item()
    print(f"final accuracy {accuracy:.4f}")
