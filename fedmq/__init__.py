"""The front door: the command, and the few names that a user imports."""
