"""The coordinator: a pure core that decides (`core`), and a shell that touches the world (`shell`)."""
