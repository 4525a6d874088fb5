"""A model that is written reads back by the format's own library, whatever types and shapes it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.weights import save_model


class Medley(nn.Module):
    """Types, ties, views of one memory, scalars, what is empty, and what is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.second = nn.Linear(3, 5)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.arange(12.0).view(3, 4).t())
        self.gain = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.none = nn.Parameter(torch.empty(0, 4))
        both = torch.arange(10, dtype=torch.int16)
        for name, value in {
            "left": both[:5],
            "right": both[5:],
            "mask": torch.tensor([True, False, True]),
            "sixteen": torch.tensor([1.5, -2.0], dtype=torch.float16),
            "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "eighth": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
            "wave": torch.tensor([1 + 2j], dtype=torch.complex64),
            "count": torch.tensor(7),
            "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
        }.items():
            self.register_buffer(name, value)


def test_a_model_reads_back(tmp_path: Path) -> None:
    model, path = Medley(), tmp_path / "model.safetensors"
    save_model(model, path, {"task": "medley", "umlaut": "ä"})
    state = {name: value.detach() for name, value in model.state_dict().items()}
    read = load_file(path)
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert read[name].dtype == value.dtype, name
        assert read[name].shape == value.shape, name
        same = value.contiguous().view(-1).view(torch.uint8)
        assert torch.equal(read[name].contiguous().view(-1).view(torch.uint8), same), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"task": "medley", "umlaut": "ä"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_type_that_the_format_does_not_know_is_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(TrainerError, match="no complex128, which odd is in"):
        save_model(model, tmp_path / "model.safetensors", {})
    with pytest.raises(TrainerError, match="cannot write"):
        save_model(nn.Linear(2, 2), tmp_path / "nowhere" / "model.safetensors", {})
