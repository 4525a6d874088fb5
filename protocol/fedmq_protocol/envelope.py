"""The envelope around every message: who says it, in which order, signed over topic and raw bytes.

    packet    = msgpack [content: bin, signature: bin 64]
    content   = msgpack [1, kind: str, sender: str, epoch: int, sequence: int, key_id: bin 8, body: map]
    signature = Ed25519 over  utf8(topic) || 0x00 || content

`sender` is a device's id, or `coordinator`. `epoch` is the coordinator's fencing epoch or the device's session; with
`sequence` it orders what one sender says. A broker can withhold a message, but neither alter nor forge it, nor move it
to another topic; replays are recognised by what they carry (update ids, versions, epochs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgpack
from pydantic import ValidationError

from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_COUNTER, MAX_ENVELOPE_BYTES, MAX_ID_CHARS, MAX_NESTING, PROTOCOL_VERSION
from fedmq_protocol.messages import KIND_OF, KINDS, Body, to_plain
from fedmq_protocol.packing import FORM, pack, unpack
from fedmq_protocol.signing import KEY_ID_BYTES, SIGNATURE_BYTES, Signer, verify

COORDINATOR: Final = "coordinator"
_MAX_ITEMS: Final = 4_096
_CONTENT_FIELDS: Final = 7
_CONTAINERS: Final = (list, dict)


@dataclass(frozen=True)
class Envelope:
    """A message whose form has been checked; its signature is checked by `verified`."""

    topic: str
    kind: str
    sender: str
    epoch: int
    sequence: int
    key_id: bytes
    body: Body
    content: bytes
    signature: bytes
    packed: bool = False
    """It came in the shorter form, so its sender reads that, too."""

    def verified(self, public_key: bytes) -> Envelope:
        """Return self if it was signed by the owner of `public_key`.

        Raises:
            SignatureError: it was not.
        """
        verify(public_key, self.signature, self.signed)
        return self

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        return _signed(self.topic, self.content)


class Sealer:
    """Puts bodies into envelopes for one sender and epoch, counting the sequence on from `after`."""

    def __init__(self, *, sender: str, epoch: int, key: Signer, after: int = 0) -> None:
        self.sender = sender
        self.epoch = epoch
        self._key = key
        self._sequence = after

    @property
    def public_key(self) -> bytes:
        return self._key.public_key

    def seal(self, topic: str, body: Body, *, packed: bool = False) -> bytes:
        """Return the packet's payload for `body` on `topic`; `packed`: in the shorter form, where that is shorter."""
        self._sequence += 1
        header = [
            PROTOCOL_VERSION,
            KIND_OF[type(body)],
            self.sender,
            self.epoch,
            self._sequence,
            self._key.key_id,
        ]
        content: bytes = msgpack.packb([*header, to_plain(body)])
        signature = self._key.sign(_signed(topic, content))
        frame = pack(content) if packed else None
        packet: bytes = msgpack.packb([content, signature] if frame is None else [FORM, frame, signature])
        return packet


class Reader:
    """How a core reads packets. A simulator, where no stranger speaks, may bring one that verifies more cheaply."""

    def open(self, topic: str, payload: bytes) -> Envelope:
        """As `open_envelope`."""
        return open_envelope(topic, payload)

    def verified(self, envelope: Envelope, public_key: bytes) -> Envelope:
        """As `Envelope.verified`."""
        return envelope.verified(public_key)


def _signed(topic: str, content: bytes) -> bytes:
    return topic.encode() + b"\0" + content


def _unpack(data: bytes) -> object:
    try:
        value: object = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_str_len=MAX_ENVELOPE_BYTES,
            max_bin_len=MAX_ENVELOPE_BYTES,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, MemoryError) as error:
        msg = f"not msgpack within the limits: {type(error).__name__}"
        raise RemoteError(msg) from error
    return value


def _check_nesting(value: list[object]) -> None:
    """Refuse what is nested more deeply than any body is, before anything walks it by recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_NESTING - 1):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, _CONTAINERS)
        ]
        if not level:
            return
    msg = f"nested more than {MAX_NESTING} deep"
    raise RemoteError(msg)


def _is_counter(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNTER


def open_envelope(topic: str, payload: bytes) -> Envelope:
    """Parse what arrived on `topic`.

    The caller still has to check the signature, and that the sender may speak on this topic.

    Raises:
        RemoteError: too large, not an envelope, of another protocol version, of an unknown kind, or with a body that
            breaks its model.
    """
    if len(payload) > MAX_ENVELOPE_BYTES:
        msg = f"{len(payload)} bytes, more than {MAX_ENVELOPE_BYTES}"
        raise RemoteError(msg, reason="too-large")
    match _unpack(payload):
        case [bytes() as content, bytes() as signature] if len(signature) == SIGNATURE_BYTES:
            packed = False
        case [int() as form, bytes() as frame, bytes() as signature] if len(signature) == SIGNATURE_BYTES:
            if form != FORM or isinstance(form, bool):
                msg = f"packed in a form that this side does not know: {form}"
                raise RemoteError(msg)
            content, packed = unpack(frame), True
        case _:
            msg = "not an envelope: expected [content, signature]"
            raise RemoteError(msg)
    fields = _unpack(content)
    if not isinstance(fields, list) or not fields:
        msg = "not an envelope: the content is no list"
        raise RemoteError(msg)
    _check_nesting(fields)
    if fields[0] != PROTOCOL_VERSION:
        theirs = fields[0] if _is_counter(fields[0]) else "that is no number"
        msg = f"protocol version {theirs}; this side speaks {PROTOCOL_VERSION}: update the older one"
        raise RemoteError(msg, reason="protocol-version")
    match fields:
        case [_, str() as kind, str() as sender, epoch, sequence, bytes() as key, dict() as plain] if (
            len(fields) == _CONTENT_FIELDS
            and len(sender) <= MAX_ID_CHARS
            and len(key) == KEY_ID_BYTES
            and _is_counter(epoch)
            and _is_counter(sequence)
        ):
            model = KINDS.get(kind)
        case _:
            msg = "not an envelope: its fields are of the wrong types"
            raise RemoteError(msg)
    if model is None:
        msg = f"unknown kind of message {kind[:40]!r}"
        raise RemoteError(msg, reason="unknown-kind")
    return Envelope(
        topic, kind, sender, epoch, sequence, key, _validate(model, plain), content, signature, packed
    )


def _validate(model: type[Body], plain: dict[object, object]) -> Body:
    try:
        return model.model_validate(_tuples(plain), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        msg = f"{model.__name__}.{where}: {first['msg']}"[:200]
        raise RemoteError(msg) from error


def _tuples(plain: dict[object, object]) -> dict[object, object]:
    """Strict validation wants tuples where msgpack gives lists; `traffic` is the protocol's one tuple."""
    for key, value in plain.items():
        if isinstance(value, dict):
            _tuples(value)
        elif key == "traffic" and isinstance(value, list):
            plain[key] = tuple(value)
    return plain
