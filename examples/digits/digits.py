"""Handwritten digits: the smallest task there is."""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from fedmq import Task

x, y = load_digits(return_X_y=True)
x = x / 16
order = np.random.default_rng(0).permutation(len(y))  # everybody cuts the same way
test, rest = order[:359], order[359:]


def model():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def load_data(device):  # on a device: its own part
    mine = rest[device.partition_id :: device.num_partitions]
    return x[mine], y[mine]


def load_test_data(_):  # at the coordinator: what no device has seen
    return x[test], y[test]


task = Task(name="my-digits", model=model, load_data=load_data, load_test_data=load_test_data)
