"""The work as a Flower app for superlink and supernodes, the deployment that Flower recommends."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from work import Data, note


def train(message: Message, context: Context) -> Message:
    """One device's round."""
    data = Data(str(context.run_config["data"]))
    device = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    weights, examples = data.train(message.content["arrays"].to_numpy_ndarrays(), device, number)
    content = RecordDict(
        {"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": examples})}
    )
    return Message(content=content, reply_to=message)


def serve(grid: Grid, context: Context) -> None:
    """FedAvg over all devices, evaluated at the server."""
    data, journal = Data(str(context.run_config["data"])), str(context.run_config["journal"])

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        accuracy = data.accuracy(arrays.to_numpy_ndarrays())
        note(journal, number, accuracy)
        return MetricRecord({"accuracy": accuracy})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(data.first_weights()),
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord(),
        evaluate_fn=evaluate,
    )


client_app = ClientApp()
client_app.train()(train)
server_app = ServerApp()
server_app.main()(serve)
