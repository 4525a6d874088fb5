"""The tree of errors. Everything that fedmq raises on purpose derives from `FedmqError`.

The branch tells who is at fault, so that a caller knows what to do without reading the text:

- `RemoteError`: bytes from outside are wrong. Reject the message, tell its sender, go on.
- `UsageError`: this program was asked for the impossible: a wrong option, a missing file. Say so in a line and exit.
- `ConnectionFailedError`: the broker cannot be used now. Retry, or say so where nobody waits.

Misuse of one part of our own code by another raises the built-in errors (`ValueError`, `AssertionError`): bugs.
"""

from __future__ import annotations


class FedmqError(Exception):
    """The root. `str(error)` is one line that names the mend where there is one."""


class RemoteError(FedmqError):
    """Bytes that came from outside break the protocol.

    Attributes:
        reason: a short stable word for receipts and counters, for example `"malformed"` or `"too-large"`.
    """

    def __init__(self, detail: str, *, reason: str = "malformed") -> None:
        super().__init__(detail)
        self.reason = reason


class CodecError(RemoteError):
    """A payload does not decode: truncated, lying about its lengths, out of range, or not finite."""


class SignatureError(RemoteError):
    """A message is not signed by whom it claims to come from."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, reason="bad-signature")


class UsageError(FedmqError):
    """The user asked for something that cannot be done; the text names the fix."""


class ConfigError(UsageError):
    """A setting is wrong; the text names the setting, where its value came from, and the fix."""


class ConnectionFailedError(FedmqError):
    """The broker is not reachable, or refuses us."""


class StoreError(FedmqError):
    """What is on disk cannot be used: of another version, damaged, or held by another process."""
