"""What a connection needs from the disk before it starts: the password and the TLS context."""

from __future__ import annotations

import ssl

from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError


def read_credentials(settings: BrokerSettings) -> tuple[str | None, str | None]:
    """User name and password as they hold now; a password file is read anew, so that it can be changed.

    Raises:
        ConfigError: `password_file` cannot be read, or there is a password and no user name.
    """
    username, password = settings.url_credentials
    if settings.username is not None:
        username = settings.username
    if settings.password is not None:
        password = settings.password.get_secret_value()
    if settings.password_file is not None:
        try:
            password = settings.password_file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the broker's password_file cannot be read: {error}") from None
    if password is not None and username is None:
        raise ConfigError(
            "the broker has a password but no username: set username, or user:password@ in the url"
        )
    return username, password


def make_tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """The TLS context that the settings describe, or None where the URL asks for no TLS.

    Raises:
        ConfigError: a certificate or key file is missing or not usable.
    """
    if not settings.uses_tls:
        return None
    try:
        context = ssl.create_default_context(
            cafile=None if settings.ca_file is None else str(settings.ca_file)
        )
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"the broker's ca_file {str(settings.ca_file)!r} cannot be used: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.cert_file is not None:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:
            names = " with ".join(repr(str(path)) for path in (settings.cert_file, settings.key_file) if path)
            raise ConfigError(f"the broker's cert_file {names} cannot be used: {error}") from None
    return context
