"""What stands on the other side of the fleet in `fleet_tls`, in a process of its own: a coordinator, or bare bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.light_mqtt import LightClient
from benchmarks.stand_ins import NumbersHost
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.model_host import Beginning
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.codecs import encode_seeded
from fedmq_protocol.codecs.seeded import Segment
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.topics import Topics

FEDERATION: Final = "fleet"
TASK_NAME: Final = "numbers"


def schema_of(parameters: int) -> TensorSchema:
    """One tensor."""
    return TensorSchema(
        entries=(TensorEntry(name="w", shape=(parameters,), dtype="float32", role="parameter"),)
    )


def host(parameters: int) -> NumbersHost:
    """So many numbers, zero at first."""
    schema, zeros = schema_of(parameters), (Segment.constant(parameters, 0.0),)
    none = np.empty(0, np.float32)
    return NumbersHost(
        TASK_NAME,
        schema,
        lambda seed, snapshot: Beginning(recipe=encode_seeded(seed, zeros, none, schema, snapshot)),
    )


async def coordinator(given: dict[str, Any]) -> None:
    """The real one."""
    settings = CoordinatorSettings(
        federation=FEDERATION,
        broker=BrokerSettings(**{name: _path(name, value) for name, value in given["broker"].items()}),
        state_dir=Path(given["folder"]),
        listen="127.0.0.1:0",
        updates_under_way=given["under_way"],
    )
    await run_coordinator_forever(settings, model_host=host(given["parameters"]))


def _path(name: str, value: str) -> str | Path:
    return Path(value) if name.endswith("_file") else value


class Answers:
    """Says something to all; answers each who answers; begins anew when all have.

    Args:
        given: sizes and numbers.
        publish: hands a message over.
    """

    def __init__(self, given: dict[str, Any], publish: Callable[[str, bytes], None]) -> None:
        self._given, self._publish = given, publish
        self._receipt = bytes(given["receipt"])
        self._here: set[str] = set()
        self._answered = self._begun = 0

    def hears(self, topic: str, _: bytes) -> None:
        """A message came."""
        agents = self._given["agents"]
        if topic.endswith("/hello"):
            if topic not in self._here:
                self._here.add(topic)
                self._begin(len(self._here) == agents)
            return
        self._publish(topic.replace("/up/update", "/down/receipt"), self._receipt)
        self._answered += 1
        self._begin(self._answered % agents == 0)

    def _begin(self, due: bool) -> None:  # noqa: FBT001 - whether all have answered
        if due and self._begun < self._given["rounds"]:
            self._begun += 1
            payload = self._begun.to_bytes(4, "big") + bytes(self._given["announcement"] - 4)
            self._publish(Topics(FEDERATION).announcement, payload)


_ALL_SAY: Final = f"{Topics(FEDERATION).root}/dev/+/up/+"


async def bare(given: dict[str, Any]) -> None:
    """Answers by the light client."""
    broker = BrokerSettings(**{name: _path(name, value) for name, value in given["broker"].items()})
    tls = ssl.create_default_context(cafile=str(broker.ca_file))
    tls.load_cert_chain(str(broker.cert_file), str(broker.key_file))
    answers = Answers(given, lambda topic, payload: client.publish(topic, payload))  # noqa: PLW0108 - not yet there
    client = await LightClient.connect(
        "@coordinator", answers.hears, host=broker.host, port=broker.port, tls=tls
    )
    await client.subscribe([_ALL_SAY])
    await asyncio.Event().wait()


async def paho(given: dict[str, Any]) -> None:
    """Answers by paho-mqtt in a thread of its own, as its documentation shows it."""
    broker = BrokerSettings(**{name: _path(name, value) for name, value in given["broker"].items()})
    client = Client(CallbackAPIVersion.VERSION2, client_id="@coordinator")
    client.tls_set(str(broker.ca_file), str(broker.cert_file), str(broker.key_file))
    answers = Answers(given, lambda topic, payload: _handed(client.publish(topic, payload, qos=1)))
    client.on_message = lambda _client, _userdata, message: answers.hears(
        message.topic, bytes(message.payload)
    )
    client.on_connect = lambda *_: _handed(client.subscribe(_ALL_SAY, qos=1))
    client.connect(broker.host, broker.port)
    client.loop_start()
    await asyncio.Event().wait()


def _handed(_: object) -> None:
    """Nobody waits for it."""


def main() -> None:
    """`coordinator`, `bare` or `paho`, and a file of settings."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    role, name = sys.argv[1:]
    given = json.loads(Path(name).read_text())
    asyncio.run({"coordinator": coordinator, "bare": bare, "paho": paho}[role](given))


if __name__ == "__main__":
    main()
