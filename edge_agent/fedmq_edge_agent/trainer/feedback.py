"""Error feedback: what an update did not carry waits in the residual, and is tried again with the next.

    p = delta + e,   send C(p),   e' = p - C(p)          (Seide et al. 2014; Karimireddy et al. 2019, alg. 2)

The protocol's codecs keep sent + e' = p to the bit. Here: the bound on e, and the density of a device's first updates.
The bound is applied to the old residual, before p is formed, so the identity holds for every update; the length of
what it takes away is reported. `residual` has the file.
"""

from __future__ import annotations

from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.messages import UploadSettings


def cap_factor(length: float, delta_norm: float, cap: float) -> tuple[float, float]:
    """By what the residual is to be scaled down to at most `cap * delta_norm`.

    Args:
        length: of the residual.
        delta_norm: length of what training changed.
        cap: the run's bound on their ratio.

    Returns:
        The factor, 1 where it is short enough, and the length of what is scaled away.
    """
    bound = cap * delta_norm
    if length <= bound:
        return 1.0, 0.0
    factor = bound / length
    return factor, length * (1.0 - factor)


def density(upload: UploadSettings, updates_done: int) -> float:
    """The share of the parameters that this update carries: from `first_density` geometrically down to `density`.

    Args:
        upload: the run's settings.
        updates_done: how many updates of this run the device has made before.
    """
    if updates_done >= upload.anneal_updates:
        return upload.density
    way = updates_done / upload.anneal_updates
    return float(upload.first_density ** (1.0 - way) * upload.density**way)


def update_spec(upload: UploadSettings, updates_done: int) -> CodecSpec:
    """How this update is encoded.

    Args:
        upload: the run's settings.
        updates_done: as for `density`.

    Raises:
        CodecError: the run asks for what no codec can do, or for one that is not known here.
    """
    return CodecSpec(
        upload.codec,
        density(upload, updates_done),
        tuple(upload.coders),
        rounding=upload.rounding,
        code_ms=upload.code_ms,
        max_bytes=upload.update_bytes,
    )
