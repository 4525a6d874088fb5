"""`fedmq agent`: one device. Starting it imports neither rich nor PyTorch nor NumPy: the supervisor stays small."""

from __future__ import annotations

import click


@click.group()
def agent() -> None:
    """Start a device's agent, or try out a task without a federation."""
