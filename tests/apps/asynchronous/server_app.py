"""A Flower server that makes a new model after every two answers, and writes down what happened."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from qsfl_flower.asynchrony import Constant
from qsfl_flower.strategies import BufferedAsync, ClientRow, RoundRecord, RunObserver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train one small array."""
    config = context.run_config
    output = Path(str(config["output"]))
    strategy = BufferedAsync(
        fraction_evaluate=0.0,
        min_available_nodes=4,
        buffer_size=2,
        staleness_weight=Constant(),
        deadline=float(config["deadline"]),
        observer=Journal(output / "rounds.jsonl"),
    )
    result = strategy.start(
        grid,
        ArrayRecord({"w": Array(np.zeros(3, np.float64))}),
        num_rounds=int(config["num-server-rounds"]),
        timeout=300,
    )
    (output / "result.json").write_text(json.dumps(result.arrays["w"].numpy().tolist()))


class Journal(RunObserver):
    """Writes a line for every round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Add a round."""
        rows = [(c.node, c.status, c.staleness, c.sent_s, c.arrived_s) for c in clients]
        with self.path.open("a") as file:
            file.write(json.dumps({"round": record.round, "clients": rows}) + "\n")
