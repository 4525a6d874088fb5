"""The coordinator: `core` decides (pure), `shell` talks to the broker, the disk, and whoever runs it."""
