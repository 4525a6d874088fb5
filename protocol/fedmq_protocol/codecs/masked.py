"""Values at indices that a seed stands for (`randk`): a mask that does not look at them, and costs eight bytes.

All k values are written, by a dense value code: what a value is does not decide whether it is sent.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from fedmq_protocol.codecs import body, randk
from fedmq_protocol.codecs.budget import check_budget
from fedmq_protocol.codecs.decoded import Sparse, frozen
from fedmq_protocol.codecs.registry import DENSE_VALUES, MASK, CodecSpec, DenseValues
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.codecs.slices import Source, check_finite
from fedmq_protocol.codecs.sparse import HEAD
from fedmq_protocol.errors import CodecError


def payload_bytes(key: int, k: int) -> int:
    """The longest payload with k values."""
    return HEAD.size + randk.SECTION_BYTES + body.FLAG_BYTES + _body_bytes(DENSE_VALUES[key], k)


def longest(n: int) -> int:
    """The longest payload for a vector of n."""
    return max(payload_bytes(key, n) for key in DENSE_VALUES)


def encode(source: Source, spec: CodecSpec, rounding: Stochastic | None) -> tuple[bytes, Sparse]:
    """Write the elements that the spec's seed stands for.

    Args:
        source: float32[n], finite.
        spec: how, with a seed.
        rounding: chance; None for the nearest level.

    Returns:
        The payload, and what it decodes to.

    Raises:
        ValueError: there is no seed, a value is not finite, or not even one fits into the budget.
    """
    if spec.seed is None:
        raise ValueError(f"{spec.name} draws its indices from a seed, and there is none")
    n, key = len(source), spec.codec.values
    k = _fitting(spec, spec.kept(n))
    indices = randk.indices(spec.seed, n, k)
    check_finite(source)  # all of it: what stays is the next residual
    picked = source[indices.astype(np.int64)]
    code = DENSE_VALUES[key]
    scales = code.measure(picked)
    section, sent = code.write(picked, 0, scales, rounding)
    frozen(indices)
    frozen(sent)
    head = HEAD.pack(MASK << 4 | key, n, k, randk.SECTION_BYTES) + randk.write(spec.seed)
    return head + body.wrap(code.write_head(scales) + section), Sparse(n, indices, sent)


def decode(view: memoryview, n: int, k: int) -> Sparse:
    """Read a payload whose tag, n and k have been checked.

    Raises:
        CodecError: it is malformed; nothing has been drawn then.
    """
    tag, _, _, index_bytes = HEAD.unpack_from(view)
    rest = view[HEAD.size :]
    if index_bytes != randk.SECTION_BYTES or len(rest) < index_bytes:
        raise CodecError(f"a seed of {index_bytes} bytes, or less")
    code = DENSE_VALUES[tag & 15]
    written = body.unwrap(rest[index_bytes:], _body_bytes(code, k))
    cut = code.head_bytes(k)
    values = code.read(written[cut:], 0, k, code.read_head(written[:cut]))
    indices = randk.read(rest[:index_bytes], n, k)
    frozen(indices)
    frozen(values)
    return Sparse(n, indices, values)


def _fitting(spec: CodecSpec, k: int) -> int:
    """As many of k values as the budget has room for, compressed or not."""
    if spec.max_bytes is None or k == 0:
        return k
    key = spec.codec.values
    check_budget(spec, payload_bytes(key, 1))
    return bisect_right(range(k + 1), spec.max_bytes, key=lambda count: payload_bytes(key, count)) - 1


def _body_bytes(code: DenseValues, k: int) -> int:
    return code.head_bytes(k) + code.section_bytes(k)
