"""Numbers of bytes as people read them."""

from __future__ import annotations

_THOUSAND = 1000
_FINE_BELOW = 10


def bytes_text(count: float) -> str:
    """1234567 as «1.2 MB», decimal units."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < _THOUSAND:
            return f"{count:.1f} {unit}" if unit != "B" and count < _FINE_BELOW else f"{count:.0f} {unit}"
        count /= _THOUSAND
    return f"{count:.1f} TB"
