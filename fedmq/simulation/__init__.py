"""The real cores of coordinator and devices under a virtual clock and an in-memory broker, faster than real time."""
