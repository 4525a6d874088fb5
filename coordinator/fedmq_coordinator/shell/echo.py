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

from fedmq_protocol.errors import ConnectionFailedError

_log = logging.getLogger(__name__)

_SILENCE_S: Final = 5.0
"""So long nobody says anything before something is asked for; then twice as long each time, while silence lasts."""
_LONGEST_S: Final = 320.0
"""So it is, too, where connecting anew has brought nothing: a broker may accept a subscription and deliver nothing."""
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
        self._least_s = silence_s
        self._connected = False
        self._heard_at = 0.0
        self._heard = asyncio.Event()

    def heard(self, *, sought: bool = False) -> None:
        """A message came; `sought`: one as our ways bring, so that connecting anew is worth the while again."""
        if sought:
            self._least_s = self._silence_s
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
            silent = await self._is_silent_for(patience_s)
            if not silent or not self._connected or not self._waits():
                patience_s = self._least_s
            elif await self._hears():
                patience_s = self._longer(patience_s)
            elif self._waits():  # still
                _log.warning(
                    "the broker takes what the coordinator says, and delivers nothing: connecting anew"
                )
                self._least_s = patience_s = self._longer(self._least_s)
                self._reconnect()

    def _longer(self, patience_s: float) -> float:
        return min(2 * patience_s, max(_LONGEST_S, self._silence_s))

    async def _is_silent_for(self, patience_s: float) -> bool:
        """What is heard is noticed soon even when patience is long: a flood may have come, and made us deaf."""
        heard_at, until = self._heard_at, time.monotonic() + patience_s
        while (  # noqa: ASYNC110  # an event would wake us for each message
            self._heard_at == heard_at and (left_s := until - time.monotonic()) > 0
        ):
            await asyncio.sleep(min(left_s, self._silence_s))
        return self._heard_at == heard_at

    async def _hears(self) -> bool:
        """Whether anything comes of asking, or that cannot be told."""
        self._heard.clear()
        for ask in self._ways:
            try:
                await ask()
            except ConnectionFailedError:
                return True  # the loss is known, and seen to; of what is refused (`RefusedError`) nothing can come
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._heard.wait()
            except TimeoutError:
                continue
            return True
        return False
