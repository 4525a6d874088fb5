"""Whoever floods the broker is found, cut off for a stated time, and let in again: what `fedmq broker guard` does.

- `watching` tells who floods, from Mosquitto's log and the kernel's counters; `sockets` reads those.
- `quarantine` remembers who is cut off, until when and why.
- `patrol` is the loop: it listens, decides, and commands the security plugin.
"""
