"""The training of an experiment as a plain Flower simulation: Flower's strategy, loop and logs.

It shares data, partition, model and local training with the suite, and nothing else. Prints the
time at which each round is over, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.simulations.build import client_of, evaluator_of, model_of, owners_of
from qsfl_flower.simulations.config import load_experiment


def main(config: str, overrides: Sequence[str]) -> None:
    """Run an experiment with Flower's own FedAvg."""
    experiment = load_experiment(config, overrides)
    owners = owners_of(experiment)
    count = experiment.clients.count
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(experiment, owners, int(context.node_config["partition-id"]))
        record = message.content["arrays"]
        arrays, examples, metrics = client.fit(
            record.to_numpy_ndarrays(), dict(message.content["config"])
        )
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {k: Array(np.asarray(a)) for k, a in zip(record, arrays, strict=True)}
                ),
                "metrics": MetricRecord({"num-examples": examples, **metrics}),
            }
        )
        return Message(content, reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
        arrays = ArrayRecord({k: Array(v) for k, v in get_arrays(model_of(experiment)).items()})
        evaluate = evaluator_of(experiment)

        def watched(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            metrics = evaluate(server_round, arrays)
            sys.stdout.write(json.dumps({"round": server_round, "at": time.time()}) + "\n")
            sys.stdout.flush()
            return metrics

        strategy.start(grid, arrays, num_rounds=experiment.rounds, evaluate_fn=watched)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=count,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
            "init_args": {"logging_level": "ERROR", "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
