"""URLs, defaults, and what is refused with a line that names the setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedmq_protocol.aio_access import make_tls_context, read_credentials
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "tls", "websockets"),
    [
        ("mqtt://broker", "mqtt", "broker", 1883, False, False),
        ("mqtts://broker", "mqtts", "broker", 8883, True, False),
        ("ws://broker", "ws", "broker", 80, False, True),
        ("wss://broker/path", "wss", "broker", 443, True, True),
        ("mqtt://u:p@10.0.0.1:1999", "mqtt", "10.0.0.1", 1999, False, False),
        ("mqtt://[::1]:1884/", "mqtt", "::1", 1884, False, False),
    ],
)
def test_urls(url: str, scheme: str, host: str, port: int, tls: bool, websockets: bool) -> None:  # noqa: FBT001
    settings = BrokerSettings(url=url)
    assert (settings.scheme, settings.host, settings.port) == (scheme, host, port)
    assert (settings.uses_tls, settings.uses_websockets) == (tls, websockets)


def test_the_path_of_websockets() -> None:
    assert BrokerSettings(url="ws://h").path == "/mqtt"
    assert BrokerSettings(url="ws://h/deep/path").path == "/deep/path"


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    assert BrokerSettings(url="mqtt://[::1]").address == "[::1]:1883"


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("http://broker", "mqtt://"),
        ("broker:1883", "mqtt://"),
        ("mqtt://", "no host"),
        ("mqtt://broker:99999", "not a URL"),
        ("mqtt://broker:x", "not a URL"),
        ("mqtt://broker:0", "port 0"),
        ("mqtt://broker/path", "end after the port"),
        ("mqtt://u:secret@broker/path", "end after the port"),
    ],
)
def test_bad_urls_say_what_is_wrong_and_not_the_password(url: str, names: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BrokerSettings(url=url)
    assert names in str(caught.value)
    assert "secret" not in str(caught.value)


def test_contradictions() -> None:
    with pytest.raises(ValidationError, match="either password or password_file"):
        BrokerSettings.model_validate({"username": "u", "password": "p", "password_file": "f"})
    with pytest.raises(ValidationError, match="cert_file"):
        BrokerSettings(key_file=Path("k"))
    with pytest.raises(ValidationError, match="reconnect_min_s"):
        BrokerSettings(reconnect_min_s=5, reconnect_max_s=1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        BrokerSettings.model_validate({"hots": "x"})


def test_credentials_from_each_place(tmp_path: Path) -> None:
    assert read_credentials(BrokerSettings()) == (None, None)
    in_url = BrokerSettings(url="mqtt://user%40home:p%3Aw@h")
    assert read_credentials(in_url) == ("user@home", "p:w")
    assert in_url.shown_url == "mqtt://h"
    own = BrokerSettings.model_validate({"url": "mqtt://a:b@h", "username": "c", "password": "d"})
    assert read_credentials(own) == ("c", "d")
    secret = tmp_path / "password"
    secret.write_text("from file\r\nnot this line\n")
    assert read_credentials(BrokerSettings(username="u", password_file=secret)) == ("u", "from file")


def test_a_password_does_not_show() -> None:
    assert "hidden" not in repr(BrokerSettings(url="mqtt://u:hidden@h"))
    settings = BrokerSettings.model_validate({"username": "u", "password": "hidden"})
    assert "hidden" not in repr(settings)
    assert "hidden" not in settings.model_dump_json()


def test_missing_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigError, match=r"password_file.*none"):
        read_credentials(BrokerSettings(username="u", password_file=missing))
    with pytest.raises(ConfigError, match="no username"):
        read_credentials(BrokerSettings.model_validate({"password": "p"}))
    with pytest.raises(ConfigError, match=r"ca_file.*none"):
        make_tls_context(BrokerSettings(url="mqtts://h", ca_file=missing))
    with pytest.raises(ConfigError, match=r"cert_file.*none"):
        make_tls_context(BrokerSettings(url="mqtts://h", cert_file=missing))
    assert make_tls_context(BrokerSettings(url="mqtt://h", ca_file=missing)) is None
