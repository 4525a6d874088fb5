"""Iris flowers on two devices, "alice" and "bob": sixty flowers each, thirty held out at the coordinator."""

import numpy as np
from sklearn.datasets import load_iris
from torch import nn

from fedmq import Task

X, Y = load_iris(return_X_y=True)
X = (X - [5.8, 3.1, 3.8, 1.2]) / [0.8, 0.4, 1.8, 0.8]  # typical size and spread in cm, known beforehand
ORDER = np.random.RandomState(42).permutation(150)  # everybody cuts the same way
PARTS = {"test": ORDER[:30], "alice": ORDER[30:90], "bob": ORDER[90:]}


def model():
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def load_data(context):
    part = PARTS[context["split"]]
    return X[part], Y[part]


def load_test_data(_):
    return X[PARTS["test"]], Y[PARTS["test"]]


task = Task(name="iris", version="1", model=model, load_data=load_data, load_test_data=load_test_data)
