"""Members let in and thrown out while Mosquitto runs, over `$CONTROL`, as `@operator`; nobody else is cut off.

    async with Control(settings, lock=site.member("@operator").folder / "lock") as control:
        await control.add([member], topics)
        await control.remove(["dev-7"])        # its session ends at once, without its last will

`@operator` has one session at the broker, like every member: who comes second pushes the first out. So whoever comes in
as `@operator` takes the lock first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from fedmq_broker.authority_register import Member, open_lock
from fedmq_broker.dynsec import own_acls, render, roles_of
from fedmq_protocol.access import CONTROL_TOPIC, OPERATOR
from fedmq_protocol.aio import BrokerSettings, Connected, Connection, Event, Message
from fedmq_protocol.errors import ConnectionFailedError, FedmqError
from fedmq_protocol.topics import Topics

RESPONSE_TOPIC: Final = f"{CONTROL_TOPIC}/response"
_BATCH: Final = 4
"""Commands a message. The plugin writes its file after each, and the broker does nothing else meanwhile."""

_MEMBERS: Final = 2
"""So many members a message: a role and a client each."""

_PAGE: Final = 100
_ANSWER_S: Final = 30.0
_LOCK_S: Final = 60.0
_POLL_S: Final = 0.05


Progress: TypeAlias = Callable[[int, int], None]
"""Told how much of how much is done."""


class ControlError(FedmqError):
    """The broker's security plugin refuses a command, or does not answer."""


@dataclass(frozen=True)
class Synced:
    """What was not as the register says, by name, and is now."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class Control:
    """A conversation with the plugin, as `@operator`.

    Args:
        settings: how `@operator` reaches the broker.
        lock: a file that keeps others out who would come in as `@operator`; its folder must be there.
        timeout_s: for the connection; a refusal is told at once.
        hears: what else to listen to meanwhile.
        heard: takes what comes of that, and whether the connection stands; it must not wait.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        lock: Path | None = None,
        timeout_s: float = 10.0,
        hears: Sequence[str] = (),
        heard: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self._settings = settings
        self._lock = lock
        self._timeout_s = timeout_s
        self._filters = [RESPONSE_TOPIC, *hears]
        self._heard = heard
        self._turn = contextlib.AsyncExitStack()
        self._connection: Connection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._awaited: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._kept: dict[str, asyncio.Future[bytes]] = {}
        self.max_packet_bytes: int | None = None
        """The largest packet that the broker says it takes; None: it does not say."""

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConnectionFailedError: the broker cannot be reached, or refuses us.
            ControlError: somebody else holds the lock.
        """
        if self._lock is not None:
            await self._turn.enter_async_context(turn_of_operator(self._lock))
        connection = Connection(self._settings, client_id=OPERATOR)
        try:
            await connection.start(wait=True, timeout_s=self._timeout_s)
            self._connection = connection
            self._reader = asyncio.create_task(self._read(connection))
            await connection.subscribe(self._filters)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._connection.stop()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await self._turn.aclose()

    # ------------------------------------------------------------------------------ members

    async def add(
        self,
        members: Iterable[Member],
        topics: Topics,
        *,
        passwords: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Let members in, with what each may do. Who is known already is made what it should be, and its session ends.

        Args:
            members: who.
            topics: of the federation.
            passwords: by name, of those that come in by one: the plugin makes its own hash of it.
            progress: told how many of how many are in.

        Raises:
            ControlError: the plugin refuses.
        """
        every = list(members)
        for start in range(0, len(every), _MEMBERS):
            await self._add(every[start : start + _MEMBERS], topics, passwords or {})
            if progress is not None:
                progress(min(start + _MEMBERS, len(every)), len(every))

    async def _add(self, members: Iterable[Member], topics: Topics, passwords: Mapping[str, str]) -> None:
        wanted = []
        for member in members:
            role = {"command": "createRole", "rolename": member.name, "acls": own_acls(topics, member.name)}
            client = {"command": "createClient", "username": member.name, "roles": roles_of(member.name)}
            if member.name in passwords:
                client["password"] = passwords[member.name]
            wanted += [role, client]
        errors = await self.command(wanted)
        self._raise(wanted, errors, unless="already exists")
        # There already, of somebody who was killed on the way, or with an older password or certificate.
        again = [
            await self._as_it_should_be(each)
            for each, error in zip(wanted, errors, strict=True)
            if error is not None
        ]
        if again:
            self._raise(again, await self.command(again))

    async def _as_it_should_be(self, created: dict[str, Any]) -> dict[str, Any]:
        """The command that makes what is there already what it should have been created as; who is cut off stays so.

        Who came in by a password before, and does so no more, gets one that nobody has seen: none cannot be set.
        """
        if "rolename" in created:
            return {**created, "command": "modifyRole"}
        changed = {"password": secrets.token_urlsafe(), **created, "command": "modifyClient"}
        if (await self.client(created["username"]) or {}).get("disabled"):
            del changed["roles"]
        return changed

    async def remove(self, names: Iterable[str]) -> None:
        """Throw members out: their sessions end at once, without their last wills, and they may do nothing more.

        Raises:
            ControlError: the plugin refuses.
        """
        commands = [
            each
            for name in names
            for each in (
                {"command": "deleteClient", "username": name},
                {"command": "deleteRole", "rolename": name},
            )
        ]
        self._raise(commands, await self.command(commands), unless="not found")

    async def cut_off(self, name: str) -> None:
        """End a member's session and leave it nothing that it may do, until `let_in`; it stays a member.

        A certificate still opens the door for it, a password does not.

        Raises:
            ControlError: the plugin refuses, or does not know it.
        """
        commands: list[dict[str, Any]] = [
            {"command": "modifyClient", "username": name, "roles": []},
            {"command": "disableClient", "username": name},
        ]
        self._raise(commands, await self.command(commands))

    async def let_in(self, name: str) -> None:
        """Let a member do again what it may.

        Raises:
            ControlError: the plugin refuses, or does not know it.
        """
        commands: list[dict[str, Any]] = [
            {"command": "modifyClient", "username": name, "roles": roles_of(name)},
            {"command": "enableClient", "username": name},
        ]
        self._raise(commands, await self.command(commands))

    async def clear_retained(self, topics: Iterable[str]) -> None:
        """Remove retained messages that nobody else is left to remove, such as a member's presence."""
        assert self._connection is not None
        for topic in topics:
            await self._connection.publish(topic, b"", retain=True)

    async def retained(self, topics: Iterable[str], *, within_s: float = 2.0) -> dict[str, bytes]:
        """What the broker keeps on each of some topics; those on which it keeps nothing are not in it."""
        assert self._connection is not None
        loop = asyncio.get_running_loop()
        asked = {topic: loop.create_future() for topic in topics}
        self._kept |= asked
        try:
            await self._connection.subscribe(list(asked))
            await asyncio.wait(asked.values(), timeout=within_s)
            await self._connection.unsubscribe(list(asked))
            return {topic: future.result() for topic, future in asked.items() if future.done()}
        finally:
            for topic in asked:
                self._kept.pop(topic, None)

    # ------------------------------------------------------------------------------ all of them

    async def client(self, name: str) -> dict[str, Any] | None:
        """What the plugin knows of a member: `roles`, `disabled`, ...; None where it knows none."""
        answer = await self._ask({"command": "getClient", "username": name})
        found = answer.get("data", {}).get("client")
        return found if isinstance(found, dict) else None

    async def role(self, name: str) -> dict[str, Any] | None:
        """What a role allows (`acls`); None where the plugin knows none of that name."""
        answer = await self._ask({"command": "getRole", "rolename": name})
        found = answer.get("data", {}).get("role")
        return found if isinstance(found, dict) else None

    async def clients(self) -> dict[str, dict[str, Any]]:
        """All that the plugin lets in, by name."""
        return {each["username"]: each async for each in self._pages("listClients", "clients")}

    async def roles(self) -> dict[str, dict[str, Any]]:
        """All roles, by name."""
        return {each["rolename"]: each async for each in self._pages("listRoles", "roles")}

    async def sync(
        self, members: Iterable[Member], topics: Topics, *, passwords: Mapping[str, str] | None = None
    ) -> Synced:
        """Make the running broker agree with the register.

        Who was disabled stays so. A password is set only for a member that the plugin does not know.

        Raises:
            ControlError: the plugin refuses.
        """
        every = {member.name: member for member in members if member.active}
        rendered = render(every.values(), topics)
        roles, clients = await self.roles(), await self.clients()
        wanted_roles = {each["rolename"]: each["acls"] for each in rendered["roles"]}
        wanted_clients = {each["username"]: each["roles"] for each in rendered["clients"]}

        commands: list[dict[str, Any]] = []
        changed: list[str] = []
        for name, own in wanted_roles.items():
            if name not in roles:
                commands.append({"command": "createRole", "rolename": name, "acls": own})
            elif _acl_set(roles[name].get("acls", [])) != _acl_set(own):
                commands.append({"command": "modifyRole", "rolename": name, "acls": own})
                changed.append(name)
        for name, own in wanted_clients.items():
            if name not in clients:
                command = {"command": "createClient", "username": name, "roles": own}
                if name in (passwords or {}):
                    command["password"] = (passwords or {})[name]
                commands.append(command)
            elif _role_set(clients[name].get("roles", [])) != _role_set(own):
                commands.append({"command": "modifyClient", "username": name, "roles": own})
                changed.append(name)
        gone = sorted(clients.keys() - wanted_clients.keys())
        commands += [{"command": "deleteClient", "username": name} for name in gone]
        commands += [
            {"command": "deleteRole", "rolename": name} for name in sorted(roles.keys() - wanted_roles.keys())
        ]
        self._raise(commands, await self.command(commands))
        added = sorted(wanted_clients.keys() - clients.keys())
        return Synced(tuple(added), tuple(sorted(set(changed))), tuple(gone))

    # ------------------------------------------------------------------------------ commands

    async def command(self, commands: Sequence[dict[str, Any]]) -> list[str | None]:
        """Have the plugin do these, in order: for each its complaint, or None.

        Raises:
            ControlError: no answer came.
        """
        errors: list[str | None] = []
        for start in range(0, len(commands), _BATCH):
            answers = await self._exchange(commands[start : start + _BATCH])
            errors += [answer.get("error") for answer in answers]
        return errors

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        return (await self._exchange([command]))[0]

    async def _pages(self, command: str, key: str) -> AsyncIterator[dict[str, Any]]:
        for offset in itertools.count(0, _PAGE):
            answer = await self._ask({"command": command, "verbose": True, "count": _PAGE, "offset": offset})
            if "error" in answer:
                raise ControlError(f"the broker's security plugin refuses {command}: {answer['error']}")
            page = answer["data"][key]
            for each in page:
                yield each
            if len(page) < _PAGE:
                return

    async def _exchange(self, commands: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self._connection is not None
        loop = asyncio.get_running_loop()
        marked = [{**each, "correlationData": str(next(self._numbers))} for each in commands]
        awaited = {each["correlationData"]: loop.create_future() for each in marked}
        self._awaited |= awaited
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._connection.publish(CONTROL_TOPIC, json.dumps({"commands": marked}).encode())
                return list(await asyncio.gather(*awaited.values()))
        except TimeoutError:
            raise ControlError(
                f"the broker's security plugin does not answer within {_ANSWER_S:g} s"
            ) from None
        finally:
            for number in awaited:
                self._awaited.pop(number, None)

    async def _read(self, connection: Connection) -> None:
        async for event in connection.events():
            if isinstance(event, Connected):
                self.max_packet_bytes = event.max_packet_bytes
            if isinstance(event, Message) and event.topic in self._kept:
                kept = self._kept[event.topic]
                if event.payload and not kept.done():
                    kept.set_result(event.payload)
            elif not isinstance(event, Message) or event.topic != RESPONSE_TOPIC:
                self._heard(event)
            else:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    for answer in json.loads(event.payload)["responses"]:
                        waiting = self._awaited.get(str(answer.get("correlationData")))
                        if waiting is not None and not waiting.done():
                            waiting.set_result(answer)

    @staticmethod
    def _raise(
        commands: Sequence[dict[str, Any]], errors: Sequence[str | None], *, unless: str | None = None
    ) -> None:
        for command, error in zip(commands, errors, strict=True):
            if error is not None and (unless is None or unless not in error):
                who = command.get("username") or command.get("rolename")
                raise ControlError(
                    f"the broker's security plugin refuses {command['command']} of {who}: {error}"
                )


@contextlib.asynccontextmanager
async def turn_of_operator(lock: Path, *, timeout_s: float = _LOCK_S) -> AsyncIterator[None]:
    """Keep others out who would come in as `@operator`, whose one session they would push out.

    Raises:
        ControlError: somebody else has had it for so long, or the file cannot be opened.
    """
    try:
        file = open_lock(lock)
    except OSError as error:
        raise ControlError(f"{lock} cannot be opened: {error.strerror}") from None
    with file:
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise ControlError(
                        f"another command has been talking to the broker as {OPERATOR} for {timeout_s:g} s: try again"
                    ) from None
                await asyncio.sleep(_POLL_S)
        yield


async def is_listening(settings: BrokerSettings, *, timeout_s: float = 5.0) -> bool:
    """Whether anything listens where the broker should: if nothing does, its files can be changed.

    Raises:
        ConnectionFailedError: that cannot be told: the name is not known, or nothing answers at all.
    """
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(settings.host, settings.port)
    except ConnectionRefusedError:
        return False
    except TimeoutError:
        raise ConnectionFailedError(f"{settings.address} does not answer") from None
    except OSError as error:
        raise ConnectionFailedError(
            f"{settings.address} cannot be reached: {error.strerror or error}"
        ) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _acl_set(acls: Iterable[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    return {
        (each.get("acltype"), each.get("topic"), each.get("allow"), each.get("priority", 0)) for each in acls
    }


def _role_set(roles: Iterable[Mapping[str, Any]]) -> set[Any]:
    return {each.get("rolename") for each in roles}
