"""A broker for trying out: MQTT 3.1.1 at QoS 0 and 1, clean sessions, retained messages and last wills, in memory.

    python -m fedmq_broker.embedded --host 127.0.0.1 --port 1883

- `packets`: bytes to packets and back. Pure.
- `topics`: names, filters, and which filter matches which name. Pure.
- `model`: what a broker does: events in, effects out. Pure; the simulator may use it without a network.
- `server`: sockets and timers around the model.

It is no replacement for Mosquitto: no TLS, no passwords, one process, nothing on disk. ADR 4 tells why it exists.
"""
