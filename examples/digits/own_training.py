"""The same digits, trained in a way of one's own: Adam, a learning rate that falls, and a second metric."""

import torch
from digits import load_data, load_test_data, model  # a task's file can import what lies beside it
from torch.nn.functional import cross_entropy

from fedmq import Task


def train(net, data, settings, device):
    x, y = torch.tensor(data[0], dtype=torch.float32), torch.tensor(data[1])
    decay = settings.extra.get("decay", 0.9)  # fedmq run start own_training.py --set train.extra.decay=0.8
    lr, loss = settings.lr, torch.tensor(0.0)
    for _ in range(settings.local_epochs):
        optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        for batch in torch.randperm(len(y)).split(settings.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
        lr *= decay
    print(f"partition {device.partition_id} trained on {len(y)} digits")
    return {"loss": loss.item(), "last_lr": lr}


def evaluate(net, data):
    x, y = torch.tensor(data[0], dtype=torch.float32), torch.tensor(data[1])
    scores = net(x)
    second = scores.topk(2).indices.eq(y[:, None]).any(1)
    return cross_entropy(scores, y).item(), {
        "accuracy": (scores.argmax(1) == y).float().mean().item(),
        "top_2_accuracy": second.float().mean().item(),
    }


task = Task(
    name="my-digits-adam",
    model=model,
    load_data=load_data,
    load_test_data=load_test_data,
    train=train,
    evaluate=evaluate,
)
