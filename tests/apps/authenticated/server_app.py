"""A Flower server that counts enrolled clients only, and writes down what happened."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from qsfl_flower.strategies import AuthenticatedFedAvg, ClientRow, RoundRecord, RunObserver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train two small arrays."""
    config = context.run_config
    output = Path(str(config["output"]))
    strategy = AuthenticatedFedAvg(
        credentials=str(config["qsfl-keys"]),
        encrypt=bool(config["encrypt"]),
        fraction_evaluate=float(config["fraction-evaluate"]),
        min_available_nodes=int(config["min-nodes"]),
        observer=SecurityLog(output / "rounds.jsonl"),
    )
    model = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2)}
    # Values of every kind: what is signed must be the same before and after the wire.
    sent = ConfigRecord(
        {"lr": 0.1, "epochs": -2, "seed": 2**64 - 1, "nesterov": True, "text": "ä", "raw": b"\0\1"}
    )
    result = strategy.start(
        grid,
        ArrayRecord({name: Array(array) for name, array in model.items()}),
        num_rounds=int(config["num-server-rounds"]),
        timeout=60,
        train_config=sent,
    )
    told = {
        "arrays": {name: array.numpy().tolist() for name, array in result.arrays.items()},
        "evaluated": [dict(m) for m in result.evaluate_metrics_clientapp.values()],
    }
    (output / "result.json").write_text(json.dumps(told))


class SecurityLog(RunObserver):
    """Writes a line for every round: who counted, and who was refused and why."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Add a round."""
        line = {
            "round": record.round,
            "seconds": record.time_s,
            "rejected": dict(record.rejected),
            "sessions": dict(record.stages.get("authenticate", {})),
            "clients": [[row.client, row.status, row.detail] for row in clients],
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
