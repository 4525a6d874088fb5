"""The wire contract between edge agents and the coordinator: topics, messages, codecs, chunks, signatures.

Everything here is pure, except `aio`, which speaks MQTT. NumPy is imported by `codecs` alone, so that the part of
the agent that only moves files and messages stays small.
"""
