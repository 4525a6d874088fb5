"""The coordinator's model host over a real trainer child."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmq.model_host import TrainerModelHost
from fedmq.tasks import iris
from fedmq_coordinator.core.settings import Start
from fedmq_protocol.codecs import decode_snapshot, snapshot_codec
from fedmq_protocol.errors import FedmqError, UsageError
from tests.edge_agent.trainer.asking import task_text

TASK = "fedmq.tasks.iris"


@pytest.fixture
async def host() -> AsyncIterator[TrainerModelHost]:
    host = TrainerModelHost(threads=1)
    yield host
    await host.close()


async def test_weights_go_through_the_host_and_come_back_the_same(
    host: TrainerModelHost, tmp_path: Path
) -> None:
    description = await host.describe(TASK)
    assert (description.name, description.has_central_data) == ("iris", True)
    vector = (await host.initial(TASK, seed=3, checkpoint=None)).weights
    assert vector is not None
    torch.manual_seed(3)
    model = iris.model()
    expected = np.concatenate([tensor.detach().numpy().ravel() for tensor in model.state_dict().values()])
    np.testing.assert_array_equal(vector, expected)

    loss, count, metrics = await host.evaluate(TASK, vector)
    x, y = iris.table().held_out()
    with torch.no_grad():
        scores = model(torch.from_numpy(x))
    assert count == len(y)
    assert loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(y))), rel=1e-5
    )
    assert metrics["accuracy"] == pytest.approx(float((scores.argmax(1).numpy() == y).mean()))

    out = tmp_path / "model.safetensors"
    await host.export(TASK, vector, out)
    for name, tensor in load_file(out).items():
        np.testing.assert_array_equal(tensor, model.state_dict()[name].numpy())
    again = await host.initial(TASK, seed=99, checkpoint=out, start="auto")
    assert again.weights is not None
    np.testing.assert_array_equal(again.weights, vector)
    assert "checkpoint" in again.why


async def test_a_recipe_for_the_first_weights_comes_in_place_of_them(host: TrainerModelHost) -> None:
    schema = (await host.describe(TASK)).schema
    beginning = await host.initial(TASK, seed=3, checkpoint=None, start="auto", snapshot="int4")
    assert beginning.weights is None
    assert beginning.recipe is not None
    assert len(beginning.recipe) < 100
    assert snapshot_codec(beginning.recipe) == "int4"
    loss, _, _ = await host.evaluate(TASK, decode_snapshot(beginning.recipe, schema))
    assert 0.5 < loss < 2.5, "weights as a model begins with"


async def test_a_task_that_cannot_be_loaded_is_the_user_s_to_mend(
    host: TrainerModelHost, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import torch\n1 / 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"broken\.py.*ZeroDivisionError|ZeroDivisionError.*broken\.py"):
        await host.describe(str(broken))
    assert (await host.describe(TASK)).name == "iris"  # the child lives on


async def test_a_child_that_dies_is_replaced_at_the_next_call(host: TrainerModelHost) -> None:
    await host.describe(TASK)
    assert host._client is not None
    host._client.kill()
    with pytest.raises(FedmqError, match="the model host failed"):
        await host.initial(TASK, seed=0, checkpoint=None)
    assert (await host.describe(TASK)).name == "iris"


@pytest.mark.parametrize("start", ["seed", "snapshot"])
async def test_a_large_model_without_central_data_is_not_kept(
    host: TrainerModelHost, tmp_path: Path, start: Start
) -> None:
    task = tmp_path / "large.py"
    task.write_text(task_text("nn.Linear(1000, 1000)"))
    beginning = await host.initial(str(task), seed=3, checkpoint=None, start=start)
    assert (beginning.recipe is None) == (start == "snapshot")
    assert host._client is None, "the child has gone"
    assert (await host.describe(str(task))).schema.size == 1_001_000, "and another comes when it is needed"
