"""Letters A to J from folders of pictures, `<folder>/<letter>/*.png`, on devices that each have their own."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from fedmq import Task

LETTERS = "ABCDEFGHIJ"
SIDE = 28


def pictures(folder):
    """All pictures of a folder: float32[n, 1, 28, 28], ink 1 and paper 0; and the number of each one's letter."""
    files = sorted(Path(folder).glob("*/*.png"))
    if not files:
        raise FileNotFoundError(f"no pictures in {folder}/<letter>/*.png; `python draw.py` makes some")
    small = [Image.open(file).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for file in files]
    ink = 1 - np.stack([np.asarray(picture, dtype=np.float32) for picture in small]) / 255
    return ink[:, None], np.array([LETTERS.index(file.parent.name) for file in files])


def model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5),  # [8, 24, 24]
        nn.ReLU(),
        nn.MaxPool2d(2),  # [8, 12, 12]
        nn.Conv2d(8, 16, 3),  # [16, 10, 10]
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1600, len(LETTERS)),
    )


def load_data(context):
    """Nine in ten to train on; every tenth for this device's own evaluation."""
    x, y = pictures(context.folder)
    tenth = np.arange(len(y)) % 10 == 0
    return (x[~tenth], y[~tenth]), (x[tenth], y[tenth])


def load_test_data(context):
    return pictures(context.folder or Path(__file__).parent / "data" / "test")


task = Task(name="letters", version="1", model=model, load_data=load_data, load_test_data=load_test_data)
