"""The federation in one process: nothing is lost on the way up, and it learns."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.in_process import DEVICES, federate, send, settings_of
from fedmq_protocol.codecs import CodecSpec, decode_update
from fedmq_protocol.schema import TensorEntry, TensorSchema

SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="large", shape=(60, 50), dtype="float32", role="parameter"),
        TensorEntry(name="small", shape=(100,), dtype="float32", role="parameter"),
    )
)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_is_not_sent_waits(*, per_tensor: bool) -> None:
    rng = np.random.default_rng(5)
    delta, residual = rng.standard_normal((2, SCHEMA.size)).astype(np.float32)
    delta[:3_000] *= 100  # so large that a choice among all would take nothing of the small tensor
    spec = CodecSpec("topk-int8", 0.1)
    payload, left = send(delta, residual, SCHEMA, spec, per_tensor=per_tensor)
    sent = decode_update(payload, SCHEMA).parameters.to_dense()
    assert_array_equal(sent.astype(np.float64) + left, (delta + residual).astype(np.float64))
    assert np.any(sent[3_000:]) == per_tensor
    assert np.count_nonzero(sent) <= spec.kept(SCHEMA.size)


def test_it_learns() -> None:
    options, settings = settings_of("iid", 0, {"density": 0.01})
    rounds = list(islice(federate(options, settings), 3))
    assert [each.number for each in rounds] == [1, 2, 3]
    assert rounds[-1].accuracy > 0.6
    assert all(each.up_bytes < DEVICES * 0.01 * 301_066 * 10 / 8 for each in rounds), (
        "ten bits a kept element"
    )
