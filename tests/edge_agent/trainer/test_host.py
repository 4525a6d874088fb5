"""The operations, in this process: a replica that stays bit for bit, updates that lose nothing, errors in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fedmq_edge_agent.trainer import paged
from fedmq_edge_agent.trainer.residual import Owner, StoredResidual
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, randk
from fedmq_protocol.codecs.decoded import Sparse
from fedmq_protocol.codecs.model import (
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_delta,
    replica_sha256,
    requantise,
    snapshot_codec,
)
from fedmq_protocol.schema import TensorSchema
from tests.edge_agent.trainer.asking import (
    PLAIN,
    Ask,
    Begun,
    WriteTask,
    begin,
    task_text,
    train_arguments,
)

SMALL = "nn.Linear(6, 2)"


@pytest.fixture(params=["as it is", "as if it were large"], autouse=True)
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for a model that lies in files, is worked on in pieces, and is let go in between."""
    if request.param != "as it is":
        monkeypatch.setattr(paged, "LARGE", 1)
        monkeypatch.setattr(paged, "LARGE_PIECE_BYTES", 1)
        monkeypatch.setattr(paged, "SLICE", 5)


def sent(begun: Begun, reply: dict[str, Any]) -> NDArray[np.float32]:
    """What an update carries for the parameters, dense."""
    return decode_update(Path(reply["payload_file"]).read_bytes(), begun.schema).parameters.to_dense()


def residual(begun: Begun, reply: dict[str, Any]) -> NDArray[np.float32]:
    return StoredResidual(Path(reply["residual_file"]), begun.schema.num_parameters, Owner("")).read()


# ------------------------------------------------------------------------------------------------ the replica


@pytest.mark.parametrize("codec", ["int8", "float32"])
def test_the_replica_follows_the_protocols_arithmetic(
    ask: Ask, plain_task: str, tmp_path: Path, codec: str
) -> None:
    begun = begin(ask, plain_task, tmp_path, codec=codec)
    replica = decode_snapshot(begun.snapshot_file.read_bytes(), begun.schema)
    rng = np.random.default_rng(0)
    delta_file = tmp_path / "delta.bin"
    for version in range(1, 6):
        target = replica + rng.normal(size=begun.schema.size).astype(np.float32)
        delta = encode_delta(target, replica, begun.schema, CodecSpec("topk-log4", 0.2))
        delta_file.write_bytes(delta)
        rebase = version == 4
        change = decode_update(
            delta, begun.schema
        ).parameters.to_dense()  # second way: dense float32 additions
        replica[: begun.schema.num_parameters] += change
        replica[begun.schema.num_parameters :] = target[begun.schema.num_parameters :]
        if rebase:
            replica = requantise(replica, begun.schema, codec)
        expected = replica_sha256(replica) if rebase else None
        snapshot_file = tmp_path / f"base-{version}.bin"
        reply = ask(
            "apply_delta",
            version=version,
            file=str(delta_file),
            rebase=rebase,
            replica_hash=expected,
            snapshot_file=str(snapshot_file),
        )
        assert ask("replica_hash")["hash"] == replica_sha256(replica)
        assert snapshot_file.exists() == rebase
        if rebase:  # who begins with this snapshot holds the same bits
            data = snapshot_file.read_bytes()
            assert reply["snapshot"] == blob_ref(data).model_dump()
            assert replica_sha256(decode_snapshot(data, begun.schema)) == expected


def test_a_wrong_hash_a_damaged_file_or_a_gap_is_told(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begun = begin(ask, plain_task, tmp_path)
    snapshot = {"version": 3, "file": str(begun.snapshot_file)}
    code, detail = ask.fails("load_snapshot", **snapshot, replica_hash=bytes(32))
    assert code == "bad-model"
    assert "other bits" in detail
    assert ask.fails("replica_hash")[0] == "bad-model"  # nothing half right is kept
    ask("load_snapshot", **snapshot, replica_hash=begun.replica_hash)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(begun.snapshot_file.read_bytes()[:-5])
    gap = {"rebase": False, "replica_hash": None}
    assert ask.fails("apply_delta", version=5, file=str(begun.snapshot_file), **gap)[0] == "bad-model"
    ask("replica_hash")  # a gap does no harm
    assert ask.fails("apply_delta", version=4, file=str(damaged), **gap)[0] == "bad-model"
    assert ask.fails("load_snapshot", version=3, file=str(damaged), replica_hash=bytes(32))[0] == "bad-model"
    missing = str(tmp_path / "none")
    assert ask.fails("load_snapshot", version=3, file=missing, replica_hash=bytes(32))[0] == "bad-file"


# ------------------------------------------------------------------------------------------------- training


def test_sent_and_residual_are_delta_and_old_residual_to_the_bit(
    ask: Ask, plain_task: str, tmp_path: Path
) -> None:
    begun = begin(ask, plain_task, tmp_path)
    plain_host = Ask()  # the same trainings uncompressed, with no residual: they send delta itself
    begin(plain_host, plain_task, tmp_path)
    old = np.zeros(begun.schema.num_parameters, np.float32)
    file = None
    for counter in range(6):
        reply = ask("train", **train_arguments(tmp_path / "a", counter, residual_file=file))
        whole = plain_host("train", **train_arguments(tmp_path / "b", counter, codec="float32"))
        p = sent(begun, whole) + old
        assert np.count_nonzero(sent(begun, reply)) <= math.ceil(0.1 * len(p))
        np.testing.assert_array_equal(sent(begun, reply) + residual(begun, reply), p)
        assert reply["residual_dropped"] == 0.0
        old, file = residual(begun, reply), reply["residual_file"]
    assert old.any()


def test_a_rejected_update_goes_back_into_the_residual(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begun = begin(ask, plain_task, tmp_path)
    first = ask("train", **train_arguments(tmp_path, 0))
    second = ask("train", **train_arguments(tmp_path, 1, residual_file=first["residual_file"]))
    out = str(tmp_path / "restored.bin")
    ask("restore", payload_file=first["payload_file"], residual_file=second["residual_file"], out_file=out)
    expected = residual(begun, second) + sent(begun, first)
    np.testing.assert_array_equal(residual(begun, {"residual_file": out}), expected)
    ask("train", **train_arguments(tmp_path, 2, residual_file=out))  # still this run's and this device's

    alone = str(tmp_path / "alone.bin")
    ask(
        "restore",
        payload_file=first["payload_file"],
        residual_file=None,
        out_file=alone,
        run="r1",
        device="dev-1",
    )
    np.testing.assert_array_equal(residual(begun, {"residual_file": alone}), sent(begun, first))
    code, _ = ask.fails("train", **train_arguments(tmp_path, 3, residual_file=alone, run="r2"))
    assert code == "bad-residual"


def test_the_residuals_bound_is_applied_and_counted(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begun = begin(ask, plain_task, tmp_path)
    first = ask("train", **train_arguments(tmp_path, 0))
    before = float(np.linalg.norm(residual(begun, first).astype(np.float64)))
    reply = ask(
        "train",
        **train_arguments(
            tmp_path, 1, residual_file=first["residual_file"], residual_cap=0.01, codec="float32"
        ),
    )
    other = Ask()
    begin(other, plain_task, tmp_path)
    delta = sent(begun, other("train", **train_arguments(tmp_path / "b", 1, codec="float32")))
    bound = 0.01 * float(np.linalg.norm(delta.astype(np.float64)))
    assert reply["residual_dropped"] == pytest.approx(before - bound, rel=1e-4)
    kept = sent(begun, reply) - delta
    assert float(np.linalg.norm(kept)) == pytest.approx(bound, rel=1e-2)


def test_chance_follows_from_seed_device_and_lease(ask: Ask, write_task: WriteTask, tmp_path: Path) -> None:
    model = "nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 2))"
    begin(ask, write_task(task_text(model)), tmp_path)

    def digest(**changed: Any) -> bytes:
        return bytes(ask("train", **train_arguments(tmp_path / "t", **changed))["sha256"])

    assert digest() == digest()
    assert len({digest(), digest(seed=4), digest(device="dev-2"), digest(lease=9)}) == 4
    assert derived_seed(1, "a", 2) != derived_seed(2, "a", 1)
    assert 0 <= derived_seed(1, "a", 2) < 2**63


def test_evaluation_before_training_is_of_the_version(
    ask: Ask, write_task: WriteTask, tmp_path: Path
) -> None:
    path = write_task(task_text(load_data="lambda c: (data(c), data(c, 30))"))
    begun = begin(ask, path, tmp_path, codec="float32")
    assert begun.opened["num_test_examples"] == 30
    reply = ask("train", **train_arguments(tmp_path, evaluate=True, local_epochs=30))
    before = ask("evaluate", file=str(begun.vector_file))
    assert reply["evaluation"] == {"version": 0, **before}
    assert before["num_examples"] == 30
    assert set(before["metrics"]) == {"accuracy"}
    other = Ask()
    begin(other, write_task(PLAIN), tmp_path)
    assert other("train", **train_arguments(tmp_path, evaluate=True))["evaluation"] is None


def test_buffers_travel_dense_counters_stay_and_frozen_weights_do_not_move(
    ask: Ask, write_task: WriteTask, tmp_path: Path
) -> None:
    extra = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 2)
    def forward(self, x):
        return self.out(self.norm(self.base(x)))
"""
    begun = begin(ask, write_task(task_text("Net()", extra)), tmp_path, codec="float32")
    assert (begun.schema.num_parameters, begun.schema.num_frozen, begun.schema.num_buffers) == (34, 56, 16)
    reply = ask("train", **train_arguments(tmp_path, batch_size=20, codec="float32", lr=0.2))
    update = decode_update(Path(reply["payload_file"]).read_bytes(), begun.schema)

    # The same by PyTorch alone: two batches, momentum .1 of the running mean of base(x).
    weight = torch.from_numpy(begun.vector[34 : 34 + 48].reshape(8, 6))
    bias = torch.from_numpy(begun.vector[34 + 48 : 34 + 56])
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(derived_seed(3, "dev-1", 0)))
    mean = torch.zeros(8)
    for indices in order.split(20):
        mean = 0.9 * mean + 0.1 * (x[indices] @ weight.T + bias).mean(0)
    np.testing.assert_allclose(update.buffers[:8], mean.numpy(), rtol=1e-4, atol=1e-6)
    assert update.parameters.n == 34

    again = ask("train", **train_arguments(tmp_path, 1, batch_size=20, codec="float32", lr=0.2))
    assert again["size"] == reply["size"]
    file = tmp_path / "after.safetensors"
    ask("export", file=str(begun.vector_file), out=str(file))
    state = load_file(file)
    assert state["norm.num_batches_tracked"].item() == 4  # the device's own: two trainings of two batches
    np.testing.assert_array_equal(state["base.weight"].numpy().ravel(), begun.vector[34 : 34 + 48])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sends_what_training_changed_and_no_rounding(
    ask: Ask, write_task: WriteTask, tmp_path: Path, dtype: str
) -> None:
    path = write_task(task_text(f"nn.Linear(6, 2).to(torch.{dtype})"))
    begun = begin(ask, path, tmp_path)  # an int8 snapshot: the replica is no half-precision number
    replica = decode_snapshot(begun.snapshot_file.read_bytes(), begun.schema)
    half = torch.from_numpy(replica).to(getattr(torch, dtype)).float().numpy()
    assert not np.array_equal(replica, half)
    still = ask("train", **train_arguments(tmp_path, lr=1e-30, codec="float32"))
    assert not sent(begun, still).any()  # nothing learned, nothing sent
    reply = ask("train", **train_arguments(tmp_path, lr=0.5, codec="float32"))
    after = half + sent(begun, reply)
    assert np.array_equal(after, torch.from_numpy(after).to(getattr(torch, dtype)).float().numpy())
    assert sent(begun, reply).any()


def test_tied_weights_move_together(ask: Ask, write_task: WriteTask, tmp_path: Path) -> None:
    extra = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.out(self.b(self.a(x).relu()))
"""
    begun = begin(ask, write_task(task_text("Net()", extra)), tmp_path)
    assert begun.schema.num_parameters == 36 + 6 + 6 + 12 + 2
    reply = ask("train", **train_arguments(tmp_path, codec="float32"))
    assert np.count_nonzero(sent(begun, reply)) > 40
    ask("export", file=str(begun.vector_file), out=str(tmp_path / "m.safetensors"))
    state = load_file(tmp_path / "m.safetensors")
    assert torch.equal(state["a.weight"], state["b.weight"])
    assert "b.weight" in state


def test_a_users_own_train_and_evaluate(ask: Ask, write_task: WriteTask, tmp_path: Path) -> None:
    extra = """
def train(model, data, settings, context):
    assert settings.extra == {"boost": 2.5} and context.partition_id == 3 and context["site"] == "roof"
    assert model.training
    with torch.no_grad():
        model.bias += settings.extra["boost"]
    return {"loss": torch.tensor(0.25), "num_examples": 17, "seen": len(data[0])}

def evaluate(model, data):
    assert not model.training
    return float(model.bias.sum()), {"n": len(data[0])}
"""
    own = {"train": "train", "evaluate": "evaluate", "load_data": "lambda c: (data(c), data(c, 5))"}
    path = write_task(task_text(SMALL, extra, **own))
    begun = begin(ask, path, tmp_path, codec="float32", partition_id=3, num_partitions=4, site="roof")
    reply = ask("train", **train_arguments(tmp_path, extra={"boost": 2.5}, codec="float32", evaluate=True))
    assert reply["num_examples"] == 17
    assert reply["metrics"] == {"loss": 0.25, "seen": 40.0}
    np.testing.assert_allclose(sent(begun, reply)[12:], [2.5, 2.5], rtol=1e-5)
    assert reply["evaluation"]["metrics"] == {"n": 5.0}
    assert reply["evaluation"]["num_examples"] == 5
    assert reply["evaluation"]["loss"] == pytest.approx(float(begun.vector[12:].sum()))


# ------------------------------------------------------------------------------------- what users do wrong


@pytest.mark.parametrize(
    ("extra", "fields", "code", "says"),
    [
        (
            "def bad(m, d, s, c):\n    return 1 / 0  # here",
            {"train": "bad"},
            "train-failed",
            "ZeroDivisionError",
        ),
        (
            "def bad(m, d, s, c):\n    m(torch.zeros(3, 7))  # here",
            {"train": "bad"},
            "train-failed",
            "shapes cannot be multiplied",
        ),
        ("def bad(m, d, s, c):\n    exit(3)  # here", {"train": "bad"}, "train-failed", "SystemExit: 3"),
        (
            "def bad(s, y):\n    raise ValueError('two\\nlines')  # here",
            {"loss": "bad"},
            "train-failed",
            "ValueError: two",
        ),
    ],
)
def test_a_failing_train_names_its_line(
    ask: Ask, write_task: WriteTask, tmp_path: Path, extra: str, fields: dict[str, str], code: str, says: str
) -> None:
    text = task_text(SMALL, extra, **fields)
    path = write_task(text)
    begin(ask, path, tmp_path)
    found, detail = ask.fails("train", **train_arguments(tmp_path))
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "# here" in line)
    assert found == code
    assert says in detail
    assert detail.endswith(f"({path}:{line})")
    assert not list(tmp_path.glob("update-*"))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("def train(m, d, s, c):\n    m.weight.data[0, 0] = float('nan')", "weight holds NaN or infinity"),
        ("def train(m, d, s, c):\n    m.bias.data[0] = float('inf')", "bias holds NaN or infinity"),
        (
            "def train(m, d, s, c):\n    return {'loss': float('nan')}",
            "the metric loss is nan; a smaller lr than 0.05",
        ),
        ("def train(m, d, s, c):\n    return {'loss': 'low'}", "the metric loss is str, not a number"),
        ("def train(m, d, s, c):\n    return 3", "train returned a int"),
        ("def train(m, d, s, c):\n    return {str(i): i for i in range(65)}", "65 metrics"),
        ("def train(m, d, s, c):\n    m.weight = nn.Parameter(torch.zeros(1))", "weight is not (2, 6)"),
    ],
)
def test_a_wrong_result_is_told(
    ask: Ask, write_task: WriteTask, tmp_path: Path, extra: str, says: str
) -> None:
    begin(ask, write_task(task_text(SMALL, extra, train="train")), tmp_path)
    code, detail = ask.fails("train", **train_arguments(tmp_path))
    assert code == "train-failed"
    assert says in detail


def test_a_huge_learning_rate_is_the_devices_problem_alone(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begin(ask, plain_task, tmp_path)
    code, detail = ask.fails("train", **train_arguments(tmp_path, lr=1e30, local_epochs=5))
    assert code == "train-failed"
    assert "a smaller lr than 1e+30 may help" in detail
    ask("train", **train_arguments(tmp_path))  # and the next training begins at the version again


def test_a_failing_evaluation_does_not_keep_a_device_from_training(
    ask: Ask, write_task: WriteTask, tmp_path: Path
) -> None:
    extra = "def evaluate(model, data):\n    raise OSError('no camera')"
    path = write_task(
        task_text(extra=extra, evaluate="evaluate", load_data="lambda c: (data(c), data(c, 5))")
    )
    begin(ask, path, tmp_path)
    reply = ask("train", **train_arguments(tmp_path, evaluate=True))
    assert reply["evaluation"] is None
    assert "no camera" in reply["warning"]


@pytest.mark.parametrize(
    ("load", "code", "says"),
    [
        ("lambda c: data(c, 0)", "no-data", "no examples; check [device.data]"),
        ("lambda c: None", "task-error", "training data are a NoneType"),
        ("lambda c: open('/no/such/file')", "no-data", "FileNotFoundError"),
        ("lambda c: c['folder']", "task-error", "[device.data] has no folder"),
        ("lambda c: 1 / 0", "task-error", "ZeroDivisionError: division by zero ("),
    ],
)
def test_data_that_cannot_be_loaded(ask: Ask, write_task: WriteTask, load: str, code: str, says: str) -> None:
    path = write_task(task_text(load_data=load))
    found, detail = ask.fails("open", task=path, settings={}, role="device")
    assert found == code
    assert says in detail


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"partition_id": 2, "num_partitions": 2}, "counted from 0"),
        ({"partition_id": "1"}, "partition_id = '1'"),
        ({"num_partitions": 0}, "num_partitions = 0"),
        ({"folder": 3}, "folder = 3"),
    ],
)
def test_wrong_settings_are_named(ask: Ask, plain_task: str, settings: dict[str, object], says: str) -> None:
    code, detail = ask.fails("open", task=plain_task, settings=settings, role="device")
    assert code == "task-error"
    assert says in detail


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"op": "fly"}, "no operation 'fly'"),
        ({"op": "open", "task": "x"}, "missing a required argument"),
        ({"op": "ping", "loud": True}, "unexpected keyword argument"),
        ({"op": "replica_hash"}, "no model version is loaded"),
        ({"op": "init", "seed": 1, "checkpoint": None}, "no task is open"),
        ({"op": "export", "file": 3, "out": []}, "no task is open"),
        ({}, "no operation None"),
    ],
)
def test_a_wrong_request_is_answered(ask: Ask, request_: dict[str, object], says: str) -> None:
    reply = ask.host.handle({"id": 1, **request_})
    assert reply["ok"] is False
    assert says in reply["detail"]


def test_unknown_codecs_settings_and_versions_are_refused_before_training(
    ask: Ask, plain_task: str, tmp_path: Path
) -> None:
    begin(ask, plain_task, tmp_path)
    assert "unknown codec 'zip'" in ask.fails("train", **train_arguments(tmp_path, codec="zip"))[1]
    assert ask.fails("train", **train_arguments(tmp_path, base_version=4))[0] == "bad-model"
    wrong = train_arguments(tmp_path)
    wrong["train"]["lr"] = -1
    assert "TrainSettings.lr" in ask.fails("train", **wrong)[1]
    blocked = tmp_path / "file"
    blocked.touch()
    assert ask.fails("train", **train_arguments(blocked / "run"))[0] == "disk-failing"


@pytest.mark.parametrize("update_bytes", [120, 200, 300])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_an_update_keeps_within_the_budget_that_the_run_sets(
    ask: Ask,
    plain_task: str,
    tmp_path: Path,
    update_bytes: int,
    per_tensor: bool,  # noqa: FBT001
) -> None:
    begun = begin(ask, plain_task, tmp_path)
    reply = ask("train", **train_arguments(tmp_path / "a", update_bytes=update_bytes, per_tensor=per_tensor))
    assert 0.5 * min(update_bytes, 140) < reply["size"] <= update_bytes
    whole = ask("train", **train_arguments(tmp_path / "b", codec="float32"))
    assert np.array_equal(sent(begun, reply) + residual(begun, reply), sent(begun, whole))


def test_a_budget_that_nothing_fits_into_is_the_runs_fault(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begin(ask, plain_task, tmp_path)
    code, detail = ask.fails("train", **train_arguments(tmp_path / "a", update_bytes=9))
    assert code == "bad-request"
    assert "update_bytes" in detail
    code, detail = ask.fails("train", **train_arguments(tmp_path / "a", codec="int8", update_bytes=900))
    assert "sparse" in detail


def test_each_parameter_is_among_the_sent_where_the_run_wants_it(
    ask: Ask, plain_task: str, tmp_path: Path
) -> None:
    begun = begin(ask, plain_task, tmp_path)
    reply = ask(
        "train", **train_arguments(tmp_path / "a", codec="topk-block8", density=0.01, per_tensor=True)
    )
    start, counts = 0, []
    for size in begun.schema.parameter_sizes:
        counts.append(np.count_nonzero(sent(begun, reply)[start : start + size]))
        start += size
    assert counts == [1, 1, 1, 1]


def test_devices_that_train_on_the_same_version_share_a_mask(
    ask: Ask, plain_task: str, tmp_path: Path
) -> None:
    begun = begin(ask, plain_task, tmp_path)
    masks = []
    for counter, device in enumerate(("dev-1", "dev-2")):
        reply = ask(
            "train",
            **train_arguments(tmp_path / device, counter, device=device, codec="randk-float32", density=0.1),
        )
        payload = Path(reply["payload_file"]).read_bytes()
        update = decode_update(payload, begun.schema).parameters
        assert isinstance(update, Sparse)
        masks.append(update.indices.tolist())
    expected = randk.indices(randk.shared_seed(3, 0), begun.schema.num_parameters, 15).tolist()
    assert masks == [expected, expected]


# ---------------------------------------------------------------------------------- the coordinator's side


def test_first_weights_follow_from_the_seed(ask: Ask, plain_task: str) -> None:
    ask("open", task=plain_task, settings={}, role="coordinator")
    vectors = []
    for seed in (1, 1, 2):
        file = Path(ask("init", seed=seed, checkpoint=None)["file"])
        vectors.append(np.fromfile(file, "<f4"))
        file.unlink()
    torch.manual_seed(1)
    expected = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    np.testing.assert_array_equal(vectors[0], torch.cat([w.detach().ravel() for w in expected.parameters()]))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])


def test_a_start_from_a_seed_travels_as_a_recipe_and_rebases_in_the_codec_that_it_names(
    ask: Ask, plain_task: str, tmp_path: Path
) -> None:
    opened = ask("open", task=plain_task, settings={}, role="device")
    schema = TensorSchema.model_validate(opened["schema"])
    snapshot = ask("init", seed=5, checkpoint=None, start="auto", rebase="int4")["snapshot"]
    assert snapshot == ask("init", seed=5, checkpoint=None, start="seed", rebase="int4")["snapshot"]
    assert snapshot != ask("init", seed=6, checkpoint=None, start="seed", rebase="int4")["snapshot"]
    assert len(snapshot) < 80
    file, delta_file, base_file = tmp_path / "snapshot", tmp_path / "delta", tmp_path / "base"
    file.write_bytes(snapshot)
    replica = decode_snapshot(snapshot, schema)
    assert 0.3 < np.abs(replica[:96]).max() <= 0.41  # nn.Linear(6, 16) begins within 1 / sqrt(6)
    ask("load_snapshot", version=0, file=str(file), replica_hash=replica_sha256(replica))
    target = replica + np.float32(0.01)
    delta_file.write_bytes(encode_delta(target, replica, schema, CodecSpec("topk-log4", 0.2)))
    apply_delta(replica, delta_file.read_bytes(), schema)
    ask(
        "apply_delta",
        version=1,
        file=str(delta_file),
        rebase=True,
        replica_hash=replica_sha256(requantise(replica, schema, "int4")),
        snapshot_file=str(base_file),
    )
    assert snapshot_codec(base_file.read_bytes()) == "int4"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))", "original0 is not drawn as a recipe can"),
        ("frozen()", "bias is not trained"),
        ("loaded()", "weight is not drawn as a recipe can: all of it does not depend on the seed"),
    ],
)
def test_what_a_recipe_cannot_draw_travels_and_is_named(
    ask: Ask, write_task: WriteTask, model: str, why: str
) -> None:
    extra = """
def frozen():
    layer = nn.Linear(6, 2)
    layer.bias.requires_grad_(False)
    return layer

def loaded():
    torch.manual_seed(0)
    return nn.Linear(6, 2)
"""
    ask("open", task=write_task(task_text(model, extra)), settings={}, role="coordinator")
    answer = ask("init", seed=1, checkpoint=None, start="auto")
    Path(answer["file"]).unlink()
    assert why in answer["why"]
    code, detail = ask.fails("init", seed=1, checkpoint=None, start="seed")
    assert code == "bad-request"
    assert why in detail
    Path(ask("init", seed=1, checkpoint=None, start="snapshot")["file"]).unlink()


def test_a_checkpoint_is_no_seed(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begun = begin(ask, plain_task, tmp_path)
    path = tmp_path / "model.safetensors"
    ask("export", file=str(begun.vector_file), out=str(path))
    answer = ask("init", seed=1, checkpoint=str(path), start="auto")
    Path(answer["file"]).unlink()
    assert "checkpoint" in answer["why"]
    assert "checkpoint" in ask.fails("init", seed=1, checkpoint=str(path), start="seed")[1]


def test_a_coordinator_loads_no_device_data_and_evaluates_centrally(
    ask: Ask, write_task: WriteTask, tmp_path: Path
) -> None:
    path = write_task(task_text(load_data="lambda c: 1 / 0", load_test_data="lambda c: data(c, 50)"))
    opened = ask("open", task=path, settings={}, role="coordinator")
    assert (opened["num_examples"], opened["num_test_examples"], opened["has_central_data"]) == (0, 50, True)
    vector = np.zeros(146, np.float32)
    vector[144:] = [0.0, math.log(3)]  # always: class 1 with probability 3/4
    (tmp_path / "v").write_bytes(vector.tobytes())
    measured = ask("evaluate", file=str(tmp_path / "v"))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    share = float((x[:, 0] > 0).float().mean())
    assert measured["metrics"]["accuracy"] == pytest.approx(share)
    assert measured["loss"] == pytest.approx(-share * math.log(0.75) - (1 - share) * math.log(0.25), rel=1e-5)
    assert ask.fails("train", **train_arguments(tmp_path))[0] == "bad-model"


def test_a_vector_that_is_not_one_of_this_model(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    ask("open", task=plain_task, settings={}, role="coordinator")
    file = tmp_path / "v"
    assert ask.fails("evaluate", file=str(file))[0] == "bad-file"
    file.write_bytes(np.zeros(145, np.float32).tobytes())
    assert "holds 145 values, not 146" in ask.fails("evaluate", file=str(file))[1]
    file.write_bytes(np.full(146, np.nan, np.float32).tobytes())
    assert "not finite" in ask.fails("export", file=str(file), out=str(tmp_path / "o"))[1]


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pt"])
def test_a_checkpoint_is_read_and_an_export_is_one(
    ask: Ask, plain_task: str, tmp_path: Path, kind: str
) -> None:
    begun = begin(ask, plain_task, tmp_path)
    exported = tmp_path / "model.safetensors"
    ask("export", file=str(begun.vector_file), out=str(exported))
    path = tmp_path / kind
    if path != exported:
        torch.save(load_file(exported), path)
    file = Path(ask("init", seed=99, checkpoint=str(path))["file"])
    np.testing.assert_array_equal(np.fromfile(file, "<f4"), begun.vector)
    file.unlink()


def test_a_checkpoint_of_another_model_names_the_entries(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begun = begin(ask, plain_task, tmp_path)
    good_file = tmp_path / "good.safetensors"
    ask("export", file=str(begun.vector_file), out=str(good_file))
    good = load_file(good_file)
    first, *_ = good
    bad: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "lacks": ({k: v for k, v in good.items() if k != first}, f"lacks {first}"),
        "more": ({**good, "more": torch.zeros(1)}, "has unknown more"),
        "shape": ({**good, first: torch.zeros(1)}, f"the shape differs for {first}"),
        "nan": ({**good, first: good[first] * float("nan")}, "not finite"),
    }
    for name, (state, says) in bad.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
        code, detail = ask.fails("init", seed=1, checkpoint=str(path))
        assert code == "bad-checkpoint"
        assert says in detail
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    assert ask.fails("init", seed=1, checkpoint=str(tmp_path / "x.safetensors"))[0] == "bad-checkpoint"
    assert "there is no checkpoint" in ask.fails("init", seed=1, checkpoint=str(tmp_path / "none.pt"))[1]


def test_a_checkpoint_runs_no_code(ask: Ask, plain_task: str, tmp_path: Path) -> None:
    begin(ask, plain_task, tmp_path)
    marker = tmp_path / "was-run"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(marker),)

    torch.save({"0.weight": Hostile()}, tmp_path / "hostile.pt")
    code, detail = ask.fails("init", seed=1, checkpoint=str(tmp_path / "hostile.pt"))
    assert code == "bad-checkpoint"
    assert "safetensors" in detail
    assert not marker.exists()


def test_the_centralised_reference_is_training_on_the_union(
    ask: Ask, write_task: WriteTask, tmp_path: Path
) -> None:
    path = write_task(PLAIN)
    ask("open", task=path, settings={"num_partitions": 3}, role="coordinator")
    arguments = train_arguments(tmp_path, lr=0.1, batch_size=8)["train"]
    reply = ask("centralised", epochs=5, train=arguments, seed=4, evaluate_every=2)
    assert len(reply["accuracy"]) == len(reply["loss"]) == 3  # after 2, 4 and 5 epochs
    assert reply["accuracy"][-1] > 0.85
    devices = [{"partition_id": i, "num_partitions": 3} for i in range(3)]
    again = ask("centralised", epochs=5, train=arguments, seed=4, evaluate_every=2, devices=devices)
    assert again == reply

    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    x = torch.cat([torch.randn(40, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    y = (x[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        for indices in torch.randperm(120, generator=generator).split(8):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()
    test_x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(model(test_x), (test_x[:, 0] > 0).long()).item()
    assert reply["loss"][-1] == pytest.approx(loss, rel=1e-5)


def test_a_users_own_train_serves_the_reference_too(ask: Ask, write_task: WriteTask, tmp_path: Path) -> None:
    extra = """
def train(model, data, settings, context):
    assert settings.local_epochs in (1, 2) and len(data[0]) == 80
    model.bias.data += settings.local_epochs
def evaluate(model, data):
    return float(model.bias[0].detach()), {}
"""
    path = write_task(
        task_text(
            "nn.Linear(6, 2, bias=True)", extra, train="train", evaluate="evaluate", load_test_data="data"
        )
    )
    ask("open", task=path, settings={"num_partitions": 2}, role="coordinator")
    train = train_arguments(tmp_path)["train"]
    losses = ask("centralised", epochs=3, train=train, seed=4, evaluate_every=2)["loss"]
    assert losses[1] - losses[0] == pytest.approx(1.0)
