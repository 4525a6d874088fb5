"""Who is cut off, since when, until when, and why: one JSON file that is replaced as a whole.

A first quarantine is ten minutes; each one that follows within a day of the one before is twice as long, up to a day.
Whoever is released by hand begins anew, and stays in the list until the broker knows of it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmq_broker.authority_register import locked, replace_file
from fedmq_protocol.errors import StoreError, UsageError

FIRST_S: Final = 600.0
LONGEST_S: Final = 86_400.0
_FORGIVEN_S: Final = 86_400.0


@dataclass(frozen=True)
class CutOff:
    """One member's.

    Attributes:
        since: seconds since the epoch.
        until: likewise; when it is let in again.
        times: how often in a row; 0: released by hand, and the broker does not know yet.
        why: in words for the operator.
        over: it has been let in again; the rest is kept for the next time.
    """

    since: float
    until: float
    times: int
    why: str
    over: bool = False


class Quarantine:
    """The file.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, CutOff]:
        """All that it holds, by name.

        Raises:
            StoreError: it is damaged.
        """
        try:
            plain = json.loads(self._path.read_bytes())
            return {name: CutOff(**each) for name, each in plain.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self._path} cannot be read: {error}; without it nobody is in quarantine"
            ) from None

    def active(self) -> dict[str, CutOff]:
        """Who is cut off, by name."""
        return {name: each for name, each in self.read().items() if not each.over}

    def due(self, *, now: float) -> list[str]:
        """Whose time is over."""
        return [name for name, each in self.active().items() if each.until <= now]

    def begin(self, name: str, why: str, *, now: float) -> CutOff:
        """Cut a member off; who is cut off already stays so for the time that was stated."""
        with locked(self._path.parent):
            known = self.read()
            before = known.get(name)
            if before is not None and not before.over:
                return before
            times = before.times + 1 if before is not None and now < before.until + _FORGIVEN_S else 1
            length = min(FIRST_S * 2 ** (times - 1), LONGEST_S)
            begun = CutOff(now, now + length, times, why)
            self._write({**known, name: begun}, now=now)
            return begun

    def end(self, name: str, *, now: float) -> None:
        """Its time is over; the next one will be longer, if it comes soon."""
        with locked(self._path.parent):
            known = self.read()
            if name in known:
                self._write({**known, name: dataclasses.replace(known[name], over=True)}, now=now)

    def forgive(self, name: str) -> None:
        """As if it had never been cut off: its time is over, and the next one as long as a first one.

        It stays in the list until `end`, so that whoever reaches the broker next lets it in.

        Raises:
            UsageError: it is not in quarantine.
        """
        with locked(self._path.parent):
            known = self.read()
            if name not in known or known[name].over:
                raise UsageError(f"{name} is not in quarantine")
            self._write({**known, name: dataclasses.replace(known[name], until=0.0, times=0)}, now=0.0)

    def _write(self, known: dict[str, CutOff], *, now: float) -> None:
        kept = {name: each for name, each in known.items() if not each.over or now < each.until + _FORGIVEN_S}
        plain = {name: dataclasses.asdict(each) for name, each in sorted(kept.items())}
        replace_file(self._path, json.dumps(plain, indent=1).encode(), mode=0o644)
