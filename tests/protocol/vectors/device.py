"""The agent's core as a device of the vectors: its disk is a dictionary, and its trainer does what it is told."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    CommitState,
    Effect,
    FinishBlob,
    LoadSnapshot,
    OpenTask,
    PinCoordinator,
    RemoveFiles,
    RemoveRun,
    Request,
    Restore,
    SaveModelIndex,
    Send,
    SendUpdate,
    SendUploadChunk,
    StartTrainer,
    StoreBlob,
    Subscribe,
    Train,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    Answer,
    BlobFinished,
    Connected,
    Disconnected,
    Event,
    ModelLoaded,
    PacketArrived,
    ResidualRestored,
    TaskOpened,
    TrainerAnswered,
    TrainerRefused,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import AgentState, ModelIndex, blob_file, part_file
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import (
    CodecSpec,
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_snapshot,
    encode_update,
    names,
    replica_sha256,
    requantise,
)
from fedmq_protocol.messages import KIND_OF, Body, TaskRef, Update, UploadChunk
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.protocol.vectors.form import Plain, Vector, floats, plain_body, vector


class VectorDevice:
    """One device of the conversation; `Plain` in and out, as the vectors ask and answer."""

    def __init__(self, given: Plain, schema: TensorSchema) -> None:
        self._topics = Topics(given["federation"])
        self._limits = AgentLimits(federation=given["federation"], device=given["device"])
        self._key = SigningKey(bytes.fromhex(given["private"]))
        task = given["task"]
        self._task = TaskRef(name=task["name"], version=task["version"], schema_hash=task["schema_hash"])
        self._num_examples = int(task["num_examples"])
        self._schema = schema
        self._state = AgentState()
        self._pinned: bytes | None = None
        self._indexes: dict[str, ModelIndex] = {}
        self._files: dict[str, bytes] = {}
        self._replica: Vector | None = None
        self._training: Train | None = None
        self._begins = False
        self._said: list[Plain] = []
        self._subscribed: list[str] = []
        self._now = 100.0
        self._start()

    def _start(self) -> None:
        self.agent = Agent(
            self._limits,
            public_key=self._key.public_key,
            coordinator_key=self._pinned,
            state=self._state,
            indexes=self._indexes,
            chance=lambda: 0.5,
        )
        self._tell(AgentStarted())

    # ------------------------------------------------------------------------------ the questions

    def connect(self, given: Plain) -> Plain:
        session = given["session"]
        will = self._shown(
            self._topics.presence(self._limits.device), self.agent.presence(online=False, session=session)
        )
        self._tell(Connected(session, given["max_packet_bytes"]))
        gives = self._reaction()
        filters = self._topics.device_filters(self._limits.device)
        return {**gives, "will": {**will, "retain": True}, "subscribes": [*filters, *gives["subscribes"]]}

    def lose(self, _: Plain) -> Plain:
        self._tell(Disconnected("cut"))
        return {}

    def hear(self, given: Plain) -> Plain:
        self._tell(PacketArrived(given["topic"], bytes.fromhex(given["packet"])))
        return self._reaction()

    def trained(self, given: Plain) -> Plain:
        request, self._training = self._training, None
        assert request is not None
        change = vector(given["change"])
        residual = self._residual(request.run)
        spec = CodecSpec(request.upload.codec, request.upload.density)
        payload, left = encode_update(change, residual, self._schema, spec)
        name, residual_file = f"update-{request.counter}.bin", f"residual-{request.counter}.bin"
        self._files[name], self._files[residual_file] = bytes(payload), np.asarray(left).tobytes()
        self._answer(
            TrainingFinished(
                run=request.run,
                payload_file=name,
                payload=blob_ref(bytes(payload)),
                residual_file=residual_file,
                num_examples=given["num_examples"],
                train_s=0.0,
            )
        )
        return self._reaction()

    def state(self, _: Plain) -> Plain:
        following = self.agent.desk.following
        assert following is not None
        assert self._replica is not None
        return {
            "version": following.replica.loaded,
            "replica_hash": replica_sha256(self._replica).hex(),
            "outbox": self.agent.desk.outbox.counters(following.run),
            "residual": floats(self._residual(following.run)),
        }

    def restart(self, _: Plain) -> Plain:
        self._replica, self._training = None, None
        self._start()
        return {}

    # ------------------------------------------------------------------------------ the shell

    def _reaction(self) -> Plain:
        said, self._said = self._said, []
        subscribed, self._subscribed = self._subscribed, []
        trains, begins, self._begins = None, self._begins, False
        if begins and self._training is not None and self._replica is not None:
            trains = {
                "run": self._training.run,
                "lease": self._training.lease,
                "version": self._training.base_version,
                "replica": floats(self._replica),
            }
        return {"says": said, "subscribes": subscribed, "trains": trains}

    def _shown(self, topic: str, body: Body) -> Plain:
        return {"topic": topic, "kind": KIND_OF[type(body)], "body": plain_body(body)}

    def _tell(self, event: Event) -> None:
        waiting: deque[Event] = deque([event])
        while waiting:
            for effect in self.agent.handle(waiting.popleft(), now=self._now):
                following = self._do(effect)
                if following is not None:
                    waiting.append(following)

    def _answer(self, answer: Answer) -> None:
        self._tell(TrainerAnswered(self.agent.desk.trainer.generation, answer))

    def _do(self, effect: Effect) -> Event | None:
        match effect:
            case Send(topic, body, retain):
                self._said.append({**self._shown(topic, body), "retain": retain})
            case SendUpdate(header, file):
                body = Update(header=header, data=self._files[file])
                self._said.append(self._shown(self._topics.up(self._limits.device, "update"), body))
            case SendUploadChunk():
                start, end = effect.offset, effect.offset + effect.size
                data = self._files[effect.file][start:end]
                chunk = UploadChunk(run=effect.run, counter=effect.counter, index=effect.index, data=data)
                self._said.append(self._shown(self._topics.up(self._limits.device, "chunk"), chunk))
            case Subscribe(topics):
                self._subscribed += topics
            case Ask(generation, request):
                answer = self._work(request)
                return None if answer is None else TrainerAnswered(generation, answer)
            case StartTrainer(generation):
                return TrainerStarted(generation)
            case FinishBlob(run, blob, version, ref):
                name = blob_file(blob, version)
                parts = self._files.pop(part_file(blob, version))
                self._files[name] = parts
                return BlobFinished(run, blob, version, ok=blob_ref(parts) == ref)
            case _:
                self._keep(effect)
        return None

    def _keep(self, effect: Effect) -> None:
        """What only touches the disk."""
        match effect:
            case CommitState(state):
                self._state = state
            case PinCoordinator(public_key):
                self._pinned = public_key
            case SaveModelIndex(run, index):
                self._indexes[run] = index
            case StoreBlob(_, blob, version, data):
                self._files[blob_file(blob, version)] = bytes(data)
            case WriteBlobPart(_, head, index, data):
                name = part_file(head.link.blob, head.link.version)
                whole = bytearray(self._files.get(name, bytes(head.link.ref.size)))
                whole[index * head.chunk_bytes : index * head.chunk_bytes + len(data)] = data
                self._files[name] = bytes(whole)
            case RemoveFiles(_, names):
                for name in names:
                    self._files.pop(name, None)
            case RemoveRun(run):
                self._indexes.pop(run, None)
            case _:
                pass

    # ------------------------------------------------------------------------------ the trainer

    def _residual(self, run: str) -> Vector:
        kept = self.agent.desk.ledger.run(run)
        name = None if kept is None else kept.residual_file
        return self._read(name)

    def _read(self, name: str | None) -> Vector:
        if name is None:
            return np.zeros(self._schema.num_parameters, np.float32)
        return np.frombuffer(self._files[name], np.float32).copy()

    def _work(self, request: Request) -> Any:
        """Answer at once, but for a training, whose outcome is the next question's."""
        match request:
            case OpenTask():
                return TaskOpened(self._task, tuple(names()), self._num_examples)
            case LoadSnapshot():
                return self._load(request)
            case ApplyDelta():
                return self._apply(request)
            case Train():
                self._training, self._begins = request, True
                return None
            case Restore():
                residual = self._read(request.residual_file)
                decode_update(self._files[request.payload_file], self._schema).parameters.add_to(residual)
                self._files[request.out_file] = residual.tobytes()
                return ResidualRestored(request.run, request.counter, request.out_file)

    def _load(self, request: LoadSnapshot) -> Answer:
        self._replica = decode_snapshot(self._files[request.file], self._schema)
        if request.replica_hash not in {None, replica_sha256(self._replica)}:
            return TrainerRefused("bad-model", "another replica hash")
        return ModelLoaded(request.run, request.version)

    def _apply(self, request: ApplyDelta) -> Answer:
        assert self._replica is not None
        apply_delta(self._replica, self._files[request.file], self._schema)
        snapshot = None
        if request.rebase:
            assert request.snapshot_file is not None
            written = bytes(encode_snapshot(self._replica, self._schema, "int8")[0])
            self._replica = requantise(self._replica, self._schema, "int8")
            self._files[request.snapshot_file], snapshot = written, blob_ref(written)
        if request.replica_hash not in {None, replica_sha256(self._replica)}:
            return TrainerRefused("bad-model", "another replica hash")
        return ModelLoaded(request.run, request.version, snapshot)
