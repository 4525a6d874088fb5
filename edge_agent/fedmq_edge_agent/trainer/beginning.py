"""What a run begins with, at the coordinator's model host: weights, or a recipe for them."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.blame import blaming
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.opened import Opened, seed_everything
from fedmq_edge_agent.trainer.recipes import DRAWS, MORE_DRAWS, SMALL, Look, MisfitError, fit, look
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_protocol.codecs.model import encode_seeded
from fedmq_protocol.codecs.seeded import Segment
from fedmq_protocol.schema import TensorEntry

Vector = NDArray[np.float32]

_WHO: Final = "first weights"
_NOTHING: Final[Vector] = np.empty(0, np.float32)


def new_model(opened: Opened, seed: int) -> torch.nn.Module:
    """A model as the task makes it, whatever it draws from.

    Raises:
        TrainerError: the task's code is at fault.
    """
    seed_everything(seed)
    with blaming("task-error", "making the model"):
        return opened.task.model()


def first_snapshot(opened: Opened, seed: int, rebase: str) -> bytes:
    """A first snapshot that holds a recipe: weights of the same distributions as the model's own, drawn from `seed`.

    Args:
        opened: the task.
        seed: what everyone draws the weights from.
        rebase: the codec of later snapshots.

    Raises:
        MisfitError: there is no recipe for this model; names the tensor and says why.
        TrainerError: the task's code is at fault.
    """
    schema = opened.schema
    entries = [entry for entry in schema.vector_entries() if entry.role != "buffer" and entry.size]
    for entry in entries:
        if entry.role == "frozen":
            raise MisfitError(f"{entry.name} is not trained, and must be everywhere as it is here")
    looks: dict[str, list[Look]] = {entry.name: [] for entry in entries}
    state: dict[str, torch.Tensor] = {}
    for draw in range(MORE_DRAWS if schema.num_parameters <= SMALL else DRAWS):
        state = {}  # one model at a time
        state = new_model(opened, derived_seed(seed, _WHO, draw)).state_dict()
        for entry in entries:
            looks[entry.name].append(look(_flat(state[entry.name], entry), entry.shape))
    buffers = [_flat(state[entry.name], entry) for entry in schema.vector_entries() if entry.role == "buffer"]
    segments: list[Segment] = []
    for entry in entries:
        try:
            segments.append(fit(looks[entry.name]))
        except MisfitError as misfit:
            raise MisfitError(f"{entry.name} is not drawn as a recipe can: {misfit}") from None
    return encode_seeded(seed, segments, np.concatenate([_NOTHING, *buffers]), schema, rebase)


def _flat(value: torch.Tensor, entry: TensorEntry) -> Vector:
    values: Vector = value.detach().reshape(-1).to(torch.float32).numpy()
    if not np.isfinite(values).all():
        raise TrainerError("task-error", f"the model's first weights are not finite in {entry.name}")
    return values
