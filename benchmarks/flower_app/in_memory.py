"""The work on Flower's older server in memory, which it calls deprecated, and which is much quicker a round.

python in_memory.py server <address> <data> <journal> <rounds>
python in_memory.py client <address> <data> <device>
"""

from __future__ import annotations

import sys

import flwr.client
import flwr.server
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg
from work import Data, note


class Device(flwr.client.NumPyClient):  # type: ignore[misc]
    """One device."""

    def __init__(self, data: Data, number: int) -> None:
        self._data, self._number = data, number

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """One round's training."""
        weights, examples = self._data.train(parameters, self._number, int(config["round"]))
        return weights, examples, {}


def serve(address: str, data: Data, journal: str, rounds: int) -> None:
    """FedAvg over ten devices."""

    def evaluate(number: int, weights, _):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        accuracy = data.accuracy(weights)
        note(journal, number, accuracy)
        return 0.0, {"accuracy": accuracy}

    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=10,
        min_available_clients=10,
        evaluate_fn=evaluate,
        on_fit_config_fn=lambda number: {"round": number},
        initial_parameters=ndarrays_to_parameters(data.first_weights()),
    )
    config = flwr.server.ServerConfig(num_rounds=rounds)
    flwr.server.start_server(server_address=address, config=config, strategy=strategy)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", address, path, journal, rounds]:
            serve(address, Data(path), journal, int(rounds))
        case ["client", address, path, device]:
            client = Device(Data(path), int(device)).to_client()
            flwr.client.start_client(server_address=address, client=client, insecure=True)
        case _:
            sys.exit(__doc__)
