"""Setting up a federation's own Mosquitto: certificates, configuration, rights, unit; safe to do again at any time.

What is there and holds stays as it is, keys above all. The configuration, the rights and the unit are rendered anew.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmq_broker import membership
from fedmq_broker.authority_register import replace_file
from fedmq_broker.checking.options import option_of
from fedmq_broker.mosquitto import find_mosquitto, mosquitto_version
from fedmq_broker.probe import port_is_free
from fedmq_broker.render import PLUGIN, Wanted, find_plugin, render
from fedmq_broker.site import Site
from fedmq_broker.sizing import Limits
from fedmq_broker.unit import Unit, render_unit, tells_systemd
from fedmq_protocol.errors import UsageError

_USUAL_PROGRAM = Path("/usr/sbin/mosquitto")
_AT_START = frozenset({"user", "pid_file", "plugin", "allow_zero_length_clientid"})
"""Global settings that Mosquitto reads at its start alone; so are all of listeners."""


def _usual_user() -> str:
    ours = os.geteuid()
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("mosquitto").pw_name if ours == 0 else pwd.getpwuid(ours).pw_name
    return "root" if ours == 0 else str(ours)  # in a container, nobody may have given us a name


@dataclass(frozen=True)
class Plan:
    """What a site is to be.

    Attributes:
        federation: its name.
        hosts: names and addresses of the broker, for its certificate.
        limits: from `fedmq_broker.sizing.plan`.
        port: see `fedmq_broker.render.Wanted`, as for the following.
        version: the Mosquitto that will run, where that is not the one installed here; empty: that one.
        user: who Mosquitto is to run as; by default whoever prepares or, for root, the user `mosquitto`.
    """

    federation: str
    hosts: Sequence[str]
    limits: Limits
    port: int = 8883
    websockets_port: int = 8884
    password_port: int = 8885
    listen: str = ""
    version: tuple[int, ...] = ()
    user: str = field(default_factory=_usual_user)

    @property
    def ports(self) -> tuple[int, ...]:
        """All that it listens on."""
        return tuple(port for port in (self.port, self.password_port, self.websockets_port) if port)

    def configuration(self) -> str:
        """The text of `mosquitto.conf`."""
        return render(
            Wanted(
                federation=self.federation,
                limits=self.limits,
                port=self.port,
                websockets_port=self.websockets_port,
                password_port=self.password_port,
                listen=self.listen,
                user=self.user,
                plugin=PLUGIN if self.version else find_plugin(),
                version=self.version or (mosquitto_version(program) if (program := find_mosquitto()) else ()),
            )
        )


@dataclass(frozen=True)
class Prepared:
    """What was done.

    Attributes:
        made: a line for each thing that was not there, or not as it should be.
        at_start: options that changed and that a running broker takes at its next start alone.
    """

    made: tuple[str, ...]
    at_start: tuple[str, ...]


def prepare(site: Site, plan: Plan, *, running: bool, renew: bool = False) -> Prepared:
    """Make a site what `plan` says.

    Args:
        site: where.
        plan: what it is to be.
        running: whether its broker runs: then the plugin's own file is left to it.
        renew: make new certificates of the server and the roles, due or not.

    Raises:
        UsageError: the site is another federation's, or a file or folder cannot be written.
    """
    files = site.mosquitto
    try:
        made = membership.prepare(site, plan.federation, plan.hosts, renew=renew)
        files.folder.chmod(0o700)
        files.data.mkdir(mode=0o700, exist_ok=True)
        before = _read(files.configuration)
        after = plan.configuration()
        if _write(files.configuration, after):
            made.append(
                f"{files.configuration}: {'the configuration' if before is None else 'changed settings'}"
            )
        if _write(files.unit, render_unit(_unit(site, plan))):
            made.append(f"{files.unit}: a systemd unit")
        if not running:
            membership.render_files(site)
        give_to(files.folder, plan.user)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be written: {error.strerror}") from None
    return Prepared(tuple(made), _changed_at_start(before or after, after))


def give_to(folder: Path, user: str) -> None:
    """Hand a folder and all in it to the user that Mosquitto becomes; where we are not root, it runs as ourselves."""
    if os.geteuid() != 0:
        return
    entry = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # of a running broker, which replaces its files
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def is_serving(plan: Plan) -> bool:
    """Whether something listens at the site's port on this machine, be it a container."""
    try:
        return not port_is_free(plan.listen or "0.0.0.0", plan.port)  # noqa: S104 - looked at, not listened on
    except OSError:
        return False


def _unit(site: Site, plan: Plan) -> Unit:
    program = find_mosquitto() or _USUAL_PROGRAM
    return Unit(
        federation=plan.federation,
        folder=site.mosquitto.folder.absolute(),
        configuration=site.mosquitto.configuration.name,
        program=program,
        user=plan.user,
        notifies=tells_systemd(program),
        limits=plan.limits,
        ports=plan.ports,
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> bool:
    """Put a file there as a whole, unless it is there already."""
    if _read(path) == text:
        return False
    replace_file(path, text.encode(), mode=0o644)
    return True


def _changed_at_start(before: str, after: str) -> tuple[str, ...]:
    """The names of settings that differ and that SIGHUP does not bring."""
    differ = set(before.splitlines()) ^ set(after.splitlines())
    names = {line.split(" ")[0] for line in differ if line and not line.startswith("#")}
    return tuple(sorted(name for name in names if name in _AT_START or _is_of_listener(name)))


def _is_of_listener(name: str) -> bool:
    option = option_of(name)
    return option is not None and option.scope == "listener"
