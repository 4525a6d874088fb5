"""As much as fits: the most elements whose coded form stays within so many bytes.

What an element costs is known only once it is coded: it depends on where the others lie and on what their values are.
But it changes slowly with their number, so the next guess is drawn through the last trial, and a few suffice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from fedmq_protocol.codecs.registry import CodecSpec

_FIRST_BITS: Final = 11  # that an element may cost; a first guess
_TRIALS: Final = 8
_CLOSE: Final = 200  # within one in so many of the budget is close enough
_AIM: Final = 0.998  # of the budget, so that a guess which is right on average fits more often than not

Form = TypeVar("Form")


class TooFewBytesError(ValueError):
    """Not even the least that there is to send fits into the budget."""


def check_budget(spec: CodecSpec, needed_bytes: int) -> None:
    """Refuse what does not fit.

    Raises:
        TooFewBytesError: the spec has a budget that is smaller than this.
    """
    if spec.max_bytes is not None and needed_bytes > spec.max_bytes:
        raise TooFewBytesError(
            f"{spec.max_bytes} bytes are too few for a payload: at least {needed_bytes} are needed"
        )


def fill(budget_bytes: int, most: int, code: Callable[[int], tuple[bytes, Form]]) -> tuple[bytes, Form]:
    """Code as many elements as fit.

    Args:
        budget_bytes: what may not be exceeded.
        most: the most elements, at least 1.
        code: k -> their coded form, and what goes with it. Longer, more or less, for more.

    Returns:
        The longest form found that fits: in the end by halving, so that there is one if a single element fits.

    Raises:
        TooFewBytesError: a single element does not.
    """
    best: tuple[bytes, Form] | None = None
    fits, exceeds = 0, most + 1
    guess, size = min(most, max(1, 8 * budget_bytes // _FIRST_BITS)), 0
    trial = 0
    while fits + 1 < exceeds:
        tried = code(guess)
        size = len(tried[0])
        if size <= budget_bytes:
            fits = guess
            if best is None or size >= len(best[0]):
                best = tried
        else:
            exceeds = guess
        trial += 1
        if best is not None and (trial >= _TRIALS or budget_bytes - len(best[0]) <= budget_bytes // _CLOSE):
            break
        guess = round(guess * _AIM * budget_bytes / size) if trial < _TRIALS else (fits + exceeds) // 2
        guess = min(exceeds - 1, max(fits + 1, guess))
    if best is None:
        raise TooFewBytesError(f"{budget_bytes} bytes are too few for a payload: one element takes {size}")
    return best
