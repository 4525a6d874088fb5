"""One machine under a test's hand: told of events, and what it then asks for looked through."""

from __future__ import annotations

from typing import Any

from fedmq_edge_agent.core.effects import Effect, FinishBlob, Note, Send, Train
from fedmq_edge_agent.core.events import (
    AgentStarted,
    BlobFinished,
    Connected,
    ModelLoaded,
    PacketArrived,
    TaskOpened,
    TimePassed,
    TrainerAnswered,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import AgentState, Link, PartHead
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.messages import ModelChunk
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.edge_agent.scripted import TASK, ScriptedCoordinator

KEY = SigningKey(b"d" * 32)
TOPICS = Topics("home")
OPENED = TaskOpened(TASK, ("topk-log4",), 143)
PAYLOAD = b"update" * 50


def make_agent(**changes: Any) -> Agent:
    given: dict[str, Any] = {
        "public_key": KEY.public_key,
        "coordinator_key": None,
        "state": AgentState(),
        "indexes": {},
        "chance": lambda: 0.5,
    }
    limits = changes.pop("limits", AgentLimits(federation="home", device="dev-1"))
    return Agent(limits, **(given | changes))


class Device:
    """Drives one machine, and remembers what it last asked for."""

    def __init__(self, coordinator: ScriptedCoordinator, **changes: Any) -> None:
        self.coordinator = coordinator
        self.agent = make_agent(**changes)
        self.now = 100.0

    def tell(self, event: Any) -> list[Effect]:
        effects = self.agent.handle(event, now=self.now)
        deadline = self.agent.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline that `handle` leaves behind would spin"
        assert self.agent.waiting(now=self.now)
        return effects

    def hear(self, message: tuple[str, bytes]) -> list[Effect]:
        return self.tell(PacketArrived(*message))

    def answer(self, answer: Any) -> list[Effect]:
        return self.tell(TrainerAnswered(self.agent.desk.trainer.generation, answer))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, deadline by deadline; all effects."""
        until, effects = self.now + seconds, list[Effect]()
        while (deadline := self.agent.next_deadline()) is not None and deadline <= until:
            self.now = deadline
            effects += self.tell(TimePassed())
        self.now = until
        return effects

    def start(self) -> list[Effect]:
        effects = self.tell(AgentStarted())
        effects += self.tell(TrainerStarted(self.agent.desk.trainer.generation))
        return effects + self.answer(OPENED)

    def connect(self) -> list[Effect]:
        return self.tell(Connected(self.agent.next_session(), 131_072))

    def join(self) -> list[Effect]:
        """Up to where the first version is loaded."""
        self.start()
        self.connect()
        effects = self.hear(self.coordinator.status())
        effects += self.hear(self.coordinator.announcement())
        effects += self.fetch()
        return effects + self.answer(ModelLoaded(self.coordinator.run, self.coordinator.versions[-1].number))

    def fetch(self) -> list[Effect]:
        """Answer all subscriptions until nothing lacks."""
        effects: list[Effect] = []
        retained = self.coordinator.retained()
        while asked := self.asked():
            for topic in asked:
                new = self.hear((topic, retained[topic]))
                for finish in of(new, FinishBlob):
                    new += self.tell(BlobFinished(finish.run, finish.blob, finish.version, ok=True))
                effects += new
        return effects

    def asked(self) -> list[str]:
        pull = None if self.agent.desk.following is None else self.agent.desk.following.pull
        return [] if pull is None else [pull._topic(key, index) for key, index in pull._asked]

    def trained(self, *, payload: bytes = PAYLOAD) -> list[Effect]:
        request = self.agent.desk.trainer.request
        assert isinstance(request, Train)
        return self.answer(
            TrainingFinished(
                run=request.run,
                payload_file=f"update-{request.counter}.bin",
                payload=blob_ref(payload),
                residual_file=f"residual-{request.counter}.bin",
                num_examples=143,
                train_s=0.2,
                metrics={"train_loss": 0.5},
            )
        )


def part_head(first: ModelChunk) -> PartHead:
    """What the first chunk tells of a blob."""
    link = Link(
        blob=first.blob,
        version=first.version,
        ref=first.ref,
        chain_hash=first.chain_hash,
        rebase=first.rebase and first.blob == "delta",
        replica_hash=first.replica_hash,
    )
    return PartHead(link=link, count=first.count, chunk_bytes=len(first.data))


def of(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def quiet(effects: list[Effect]) -> list[Effect]:
    """Without what is for people."""
    return [effect for effect in effects if not isinstance(effect, Note)]


def bodies(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [send.body for send in of(effects, Send) if isinstance(send.body, kind)]
