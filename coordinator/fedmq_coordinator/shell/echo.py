"""Whether the broker still delivers: where all is silent while devices are waited for, something is asked of it.

Mosquitto drops whatever it makes for a client while `max_queued_messages` packets wait for its socket (from 2.0.16 on,
and 2.0.11 of Debian), as when somebody floods it with QoS 0; and of a message of QoS 1 it takes for granted that it was
sent. That one counts as in flight for good, since nobody acknowledges it. Once `max_inflight_messages` are lost so,
the broker answers pings and acknowledges, and delivers nothing more on that connection. A new one sets its books right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fedmq_protocol.aio import RefusedError
from fedmq_protocol.errors import ConnectionFailedError

_log = logging.getLogger(__name__)

_SILENCE_S: Final = 5.0
"""So long nobody says anything before something is asked for; then twice as long each time, while silence lasts."""
_LONGEST_S: Final = 320.0
_ANSWER_S: Final = 3.0

Way = Callable[[], Awaitable[None]]


class Echo:
    """Makes the broker deliver something, when it has been silent for a while.

    Args:
        ways: of having something delivered to us, the cheapest first. Each returns once the broker has acknowledged,
            so that a slow link, or a reader that is held up, is not taken for a deaf connection.
        reconnect: drops the connection, and makes another one.
        waits: whether anybody should say anything, and would be listened to.
        silence_s: how long a silence is long.
        answer_s: how long to wait for the delivery after each acknowledgement.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        reconnect: Callable[[], None],
        waits: Callable[[], bool],
        *,
        silence_s: float = _SILENCE_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._ways = ways
        self._reconnect = reconnect
        self._waits = waits
        self._silence_s = silence_s
        self._answer_s = answer_s
        self._connected = False
        self._heard_at = 0.0
        self._heard = asyncio.Event()

    def heard(self) -> None:
        """A message came."""
        self._heard_at = time.monotonic()
        self._heard.set()

    def set_connected(self, connected: bool) -> None:  # noqa: FBT001  # a setter
        """The connection stands, or is lost."""
        self._connected = connected
        self.heard()

    async def run(self) -> None:
        """Work until cancelled."""
        patience_s = self._silence_s
        while True:
            heard_at = self._heard_at
            await asyncio.sleep(patience_s)
            if self._heard_at != heard_at or not self._connected or not self._waits():
                patience_s = self._silence_s
            elif await self._hears():
                patience_s = min(2 * patience_s, max(_LONGEST_S, self._silence_s))
            else:
                _log.warning(
                    "the broker takes what the coordinator says, and delivers nothing: connecting anew"
                )
                self._reconnect()
                patience_s = self._silence_s

    async def _hears(self) -> bool:
        self._heard.clear()
        asked = False
        for ask in self._ways:
            try:
                await ask()
            except ConnectionFailedError:
                return True  # which is known, and seen to
            except RefusedError:
                continue
            asked = True
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._heard.wait()
            except TimeoutError:
                continue
            return True
        return not asked
