"""Lightning: digits by a module that a trainer trains."""

import logging
import warnings

import lightning as L
import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

client = ClientApp()
server = ServerApp()


def load(part, parts):
    """One client's pictures."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[part::parts]
    return TensorDataset(torch.tensor(x[rows] / 16).float(), torch.tensor(y[rows]))


class LitDigits(L.LightningModule):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch."""
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


@client.train()
def train(msg: Message, context: Context):
    """Train on one's own pictures."""
    node = context.node_config
    data = load(node["partition-id"], node["num-partitions"] + 1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = LitDigits()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict(), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, DataLoader(data, batch_size=16, shuffle=True))
    loss = trainer.callback_metrics["train_loss"].item()
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Train together."""
    torch.manual_seed(0)
    model = LitDigits()
    strategy = FedAvg()
    rounds, first = context.run_config["num-server-rounds"], ArrayRecord(model.state_dict())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    x, y = load(8, 9).tensors
    print(f"final accuracy {(model.net(x).argmax(1) == y).float().mean().item():.4f}")
