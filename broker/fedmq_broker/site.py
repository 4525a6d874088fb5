"""The folder of a federation's own Mosquitto: one place that knows what lies where in it.

    site/authority/          the certificate authority and the register of members; ca.key never leaves it
    site/mosquitto/          all that the broker reads and writes; it runs in this folder, so that paths are relative
    site/members/NAME/       what a device or a role needs to come in

Nothing here reads or writes: it is names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemberFiles:
    """What one member needs to come in, in a folder of its own."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """PEM, with the member's name as common name; absent where it comes in by password."""
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        """PEM, mode 0600; absent where the device made its own and sent a request."""
        return self.folder / "key.pem"

    @property
    def password(self) -> Path:
        """One line, mode 0600; only for boards that cannot do certificates."""
        return self.folder / "password"

    @property
    def settings(self) -> Path:
        """The agent's settings, with paths relative to this folder."""
        return self.folder / "device.toml"


@dataclass(frozen=True)
class AuthorityFiles:
    """The certificate authority's folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate, PEM: what every member believes."""
        return self.folder / "ca.pem"

    @property
    def key(self) -> Path:
        """The authority's key, mode 0600."""
        return self.folder / "ca.key"

    @property
    def crl(self) -> Path:
        """The list of revoked certificates, PEM."""
        return self.folder / "crl.pem"

    @property
    def register(self) -> Path:
        """Who is a member: the truth, from which everything that the broker reads is made."""
        return self.folder / "members.json"


@dataclass(frozen=True)
class MosquittoFiles:
    """The folder that Mosquitto runs in. Its configuration names the other files without their folder."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "mosquitto.conf"

    @property
    def dynamic_security(self) -> Path:
        """Who may do what; rendered before a start, then written by Mosquitto's plugin."""
        return self.folder / "dynamic-security.json"

    @property
    def ca(self) -> Path:
        """A copy of the authority's certificate."""
        return self.folder / "ca.pem"

    @property
    def crl(self) -> Path:
        """A copy of the list of revoked certificates; Mosquitto reads it again on SIGHUP."""
        return self.folder / "crl.pem"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's key, mode 0600."""
        return self.folder / "server.key"

    @property
    def data(self) -> Path:
        """Where retained messages are saved."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What Mosquitto writes when it runs detached."""
        return self.folder / "log"

    @property
    def pid(self) -> Path:
        """Written by Mosquitto itself."""
        return self.folder / "mosquitto.pid"

    @property
    def unit(self) -> Path:
        """The systemd unit, to be linked into the system."""
        return self.folder / "fedmq-broker.service"


@dataclass(frozen=True)
class Site:
    """The folder of a federation's own Mosquitto, its authority and its members."""

    folder: Path

    @property
    def authority(self) -> AuthorityFiles:
        return AuthorityFiles(self.folder / "authority")

    @property
    def mosquitto(self) -> MosquittoFiles:
        return MosquittoFiles(self.folder / "mosquitto")

    @property
    def quarantine(self) -> Path:
        """Who is cut off, until when and why: `fedmq broker guard` writes it."""
        return self.folder / "quarantine.json"

    @property
    def members(self) -> Path:
        """One folder for each member."""
        return self.folder / "members"

    def member(self, name: str) -> MemberFiles:
        """The files of a device, or of one of `fedmq_protocol.access.ROLES`."""
        return MemberFiles(self.members / name)
