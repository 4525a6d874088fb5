"""`fedmq simulate fleet`: what a fleet of so many devices, of that kind, would take."""
