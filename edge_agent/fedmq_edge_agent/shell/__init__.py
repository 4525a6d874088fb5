"""The device's side that touches the world: MQTT, files, the trainer child, signals, the log."""
