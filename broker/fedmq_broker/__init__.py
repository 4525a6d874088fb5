"""The broker's side: Mosquitto's configuration, an embedded broker for trying out, and monitoring."""
