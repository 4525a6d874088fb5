"""The broker between coordinator and devices: Mosquitto for production, an embedded one for trying out.

- `runner.start_broker` starts either as a child process and waits until it answers; `runner.run_foreground` is what
  `fedmq broker start` calls.
- `mosquitto` finds the program and writes its configuration; `embedded` is the other broker's own process.
"""

from fedmq_broker.errors import BrokerStartError
from fedmq_broker.runner import RunningBroker, run_foreground, start_broker

__all__ = ["BrokerStartError", "RunningBroker", "run_foreground", "start_broker"]
