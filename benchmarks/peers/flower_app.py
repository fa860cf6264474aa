"""Runs inside Flower's own environment: FedAvg of our MLP on the devices of an .npz file.

Started by `benchmarks.peers.flower` with the interpreter of a throw-away environment that holds
`flwr[simulation]`; imports of this repository are numpy code alone (the trainer, so that both sides
train by the same lines). Prints one JSON object.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from edge_agent.trainers import MlpTrainer
from edge_agent.trainers.evaluation import accuracy
from schemas.task import TrainOptions

PLAN = json.loads(Path(sys.argv[1]).read_text())
NAMES = PLAN["names"]
OPTIONS = TrainOptions(
    epochs=PLAN["epochs"], batch_size=PLAN["batch_size"], learning_rate=PLAN["learning_rate"]
)

client = ClientApp()
server = ServerApp()
began = 0.0
curve: list[dict[str, float]] = []


@client.train()
def train(message: Message, context: Context) -> Message:
    """One device: load its examples, train, answer with the whole model."""
    device = int(context.node_config["partition-id"])
    data = np.load(PLAN["data"])
    trainer = MlpTrainer(data[f"x{device}"], data[f"y{device}"])
    arrays = message.content["arrays"].to_numpy_ndarrays()
    rng = np.random.Generator(
        np.random.PCG64([PLAN["seed"], device, int(message.content["config"]["server-round"])])
    )
    found = trainer.train(dict(zip(NAMES, arrays, strict=True)), OPTIONS, rng)
    content = RecordDict(
        {
            "arrays": ArrayRecord([np.asarray(found.tensors[name]) for name in NAMES]),
            "metrics": MetricRecord({"num-examples": found.num_examples}),
        }
    )
    return Message(content=content, reply_to=message)


class UntilTarget(Exception):  # noqa: N818 - it is no error
    """The target is met."""


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of FedAvg until the accuracy is met three evaluations in a row."""
    del context
    data = np.load(PLAN["data"])
    held = data["x_held"], data["y_held"]
    first = ArrayRecord([data[f"init_{name}"] for name in NAMES])

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        tensors = dict(zip(NAMES, arrays.to_numpy_ndarrays(), strict=True))
        found = accuracy(tensors, *held)
        curve.append({"round": number, "accuracy": found, "seconds": time.monotonic() - began})
        last = [point["accuracy"] for point in curve[-3:]]
        if len(last) == 3 and sum(last) / 3 >= PLAN["target"]:
            raise UntilTarget
        return MetricRecord({"accuracy": found})

    share = PLAN["cohort"] / PLAN["devices"]
    strategy = FedAvg(
        fraction_train=share,
        fraction_evaluate=0.0,
        min_train_nodes=PLAN["cohort"],
        min_available_nodes=PLAN["devices"],
    )
    with suppress(UntilTarget):
        strategy.start(
            grid=grid, initial_arrays=first, num_rounds=PLAN["rounds"], evaluate_fn=evaluate
        )


def run() -> dict[str, Any]:
    """Run the simulation and give its curve."""
    global began  # noqa: PLW0603 - the server app is called by Flower, without arguments of ours
    began = time.monotonic()
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=PLAN["devices"],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return {"curve": curve, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    found = run()
    Path(sys.argv[2]).write_text(json.dumps(found))
