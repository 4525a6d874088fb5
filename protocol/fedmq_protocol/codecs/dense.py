"""Dense payloads, coded and decoded slice by slice.

A payload is the tag, n, and the values' body: what a value code measured over the whole vector (its scales), then the
values. Nothing of the vector's length is held but the vector itself and, in memory or in a file, the payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from fedmq_protocol.codecs import body
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.registry import DENSE_VALUES
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.slices import Source, check_finite, parts

HEAD: Final = struct.Struct("<BI")  # tag, n


@dataclass(eq=False)
class Coded:
    """A vector as a value code writes it; a long one is made of the vector each time that it is looked at.

    Attributes:
        source: float32[n]; whatever has been looked at may be overwritten.
        values: the key in `DENSE_VALUES`.
        scales: what the code measured.
        rounding: chance, or None.
    """

    source: Source
    values: int
    scales: Float32Array
    rounding: Stochastic | None
    _short: tuple[slice, bytes, Float32Array] | None = field(default=None, init=False, repr=False)
    """All there is of a vector of one slice."""

    def write(self, out: BinaryIO) -> None:
        """Write the payload at the end of a file that can seek."""
        n, code = len(self.source), DENSE_VALUES[self.values]
        out.write(HEAD.pack(self.values, n))
        body.write(out, code.head_bytes(n) + code.section_bytes(n), self._body)

    def sent(self) -> Iterator[tuple[slice, Float32Array]]:
        """Slice after slice, where it lies and what it decodes to."""
        for part, _, sent in self._sections():
            yield part, sent

    def _body(self) -> Iterator[bytes]:
        yield DENSE_VALUES[self.values].write_head(self.scales)
        for _, section, _ in self._sections():
            yield section

    def _sections(self) -> Iterator[tuple[slice, bytes, Float32Array]]:
        if self._short is not None:
            yield self._short
            return
        code, slices = DENSE_VALUES[self.values], parts(len(self.source))
        for part in slices:
            section, sent = code.write(self.source[part], part.start, self.scales, self.rounding)
            if len(slices) == 1:
                self._short = part, section, sent
            yield part, section, sent


def measured(source: Source, values: int, rounding: Stochastic | None = None) -> Coded:
    """Get a vector ready to be coded.

    Raises:
        ValueError: it is not finite.
    """
    check_finite(source)
    return Coded(source, values, DENSE_VALUES[values].measure(source), rounding)


def payload_bytes(values: int, n: int) -> int:
    """The longest payload."""
    code = DENSE_VALUES[values]
    return HEAD.size + body.FLAG_BYTES + code.head_bytes(n) + code.section_bytes(n)


def decoded(section: memoryview, n: int, values: int) -> Iterator[tuple[slice, Float32Array]]:
    """What follows a payload's head, slice after slice; it is sound only once the last has come.

    Raises:
        CodecError: as `container.decode`, before the first slice or any later one.
    """
    code = DENSE_VALUES[values]
    content = body.reader(section, code.head_bytes(n) + code.section_bytes(n))
    scales = code.read_head(content.read(code.head_bytes(n)))
    for part in parts(n):
        count = part.stop - part.start
        yield part, code.read(content.read(code.section_bytes(count)), part.start, count, scales)
    content.finish()
