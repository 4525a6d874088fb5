"""Histories with faults: each follows from its seed, is held to invariants at every step, and can be told."""
