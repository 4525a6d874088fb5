"""[mosquitto] stands in for [broker]: who gives the one needs not give the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmq.cli import run
from fedmq.tables import MosquittoTable, broker_settings, read, site_of
from fedmq_broker.site import Site
from fedmq_protocol.access import COORDINATOR, MONITOR
from fedmq_protocol.errors import ConfigError

SITE = '[mosquitto]\nhosts = ["broker.home.arpa", "192.0.2.7"]\n'


def with_certificate(site: Site, member: str) -> None:
    files = site.member(member)
    files.folder.mkdir(parents=True)
    files.certificate.write_text("")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "fed.toml"
    path.write_text(SITE)
    return path


def test_each_member_comes_in_by_its_own_certificate(toml: Path) -> None:
    site = Site(toml.parent / "site")
    for member in (COORDINATOR, MONITOR):
        with_certificate(site, member)
        settings = broker_settings(read(toml, environ={}), member)
        assert settings.url == "mqtts://broker.home.arpa:8883"
        assert settings.ca_file == site.authority.ca
        assert settings.cert_file == site.members / member / "cert.pem"
        assert settings.key_file == site.members / member / "key.pem"
        assert settings.username is None


def test_the_other_settings_of_the_broker_hold(toml: Path) -> None:
    with_certificate(Site(toml.parent / "site"), COORDINATOR)
    toml.write_text(SITE + 'port = 18883\n[broker]\nkeepalive_s = 7\nca_file = "other.pem"\n')
    settings = broker_settings(read(toml, environ={}))
    assert (settings.port, settings.keepalive_s) == (18883, 7)
    assert settings.ca_file == toml.parent / "other.pem"


@pytest.mark.parametrize("how", ["file", "variable", "no such table"])
def test_a_url_of_its_own_wins(toml: Path, how: str) -> None:
    environ = {"FEDMQ_BROKER__URL": "mqtt://elsewhere"} if how == "variable" else {}
    toml.write_text(
        {"file": SITE + '[broker]\nurl = "mqtt://elsewhere"', "variable": SITE, "no such table": ""}[how]
    )
    settings = broker_settings(read(toml, environ=environ))
    assert settings.url == ("mqtt://127.0.0.1:1883" if how == "no such table" else "mqtt://elsewhere")
    assert settings.cert_file is None


def test_an_address_of_ipv6_gets_its_brackets(toml: Path) -> None:
    with_certificate(Site(toml.parent / "site"), COORDINATOR)
    toml.write_text('[mosquitto]\nhosts = ["fd00::7"]')
    settings = broker_settings(read(toml, environ={}))
    assert (settings.host, settings.port) == ("fd00::7", 8883)


@pytest.mark.parametrize(("member", "verb"), [("@monitor", "broker init"), ("dev-1", "device enroll dev-1")])
def test_a_member_without_certificate_is_told_what_makes_one(toml: Path, member: str, verb: str) -> None:
    with pytest.raises(ConfigError, match=rf"{member} has no certificate in .*: fedmq {verb} makes one"):
        broker_settings(read(toml, environ={}), member)


def test_a_table_without_hosts_says_so(toml: Path) -> None:
    toml.write_text("[mosquitto]\ndevices = 3\n")
    with pytest.raises(ConfigError, match=r"fed.toml: \[mosquitto\] hosts is missing"):
        broker_settings(read(toml, environ={}))


def test_two_listeners_cannot_share_a_port(toml: Path) -> None:
    toml.write_text(SITE + "password_port = 8884\n")
    with pytest.raises(ConfigError, match="must differ"):
        broker_settings(read(toml, environ={}))


def test_the_folder_lies_beside_the_file(toml: Path, tmp_path: Path) -> None:
    assert site_of(read(toml, environ={})).folder == tmp_path / "site"
    toml.write_text(SITE + 'folder = "../broker"\n')
    assert site_of(read(toml, environ={})).folder == tmp_path / "../broker"


def test_an_address_brings_no_further_lines_into_the_configuration(toml: Path) -> None:
    toml.write_text(SITE + 'listen = "127.0.0.1\\nallow_anonymous true"\n')
    with pytest.raises(ConfigError, match="listen"):
        broker_settings(read(toml, environ={}))


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ('"localhost"', 'must be a list: hosts = ["localhost"]'),
        ('["bad host!"]', "'bad host!' is neither a host's name nor an address"),
        ('["mqtts://broker"]', "'mqtts://broker' is neither"),
        ('["broker:8883"]', "'broker:8883' is neither"),
        ('["broker..home"]', "'broker..home' is neither"),
        ('[""]', "'' is neither"),
    ],
)
def test_hosts_that_no_certificate_could_name_are_refused(toml: Path, hosts: str, said: str) -> None:
    toml.write_text(f"[mosquitto]\nhosts = {hosts}\n")
    with pytest.raises(ConfigError) as refused:
        broker_settings(read(toml, environ={}))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "host", ["broker.home.arpa", "bücher.example", "fd00::1", "192.0.2.7", "mosquitto_1", "a."]
)
def test_names_and_addresses_are_hosts(toml: Path, host: str) -> None:
    toml.write_text(f'[mosquitto]\nhosts = ["{host}"]\n')
    assert read(toml, environ={}).table("mosquitto", MosquittoTable).hosts == (host,)


def test_a_federation_that_cannot_be_leaves_no_folder_behind(
    toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml.write_text('[federation]\nname = "A B"\n' + SITE)
    assert run(["broker", "init", "--config", str(toml)]) == 1
    assert "federation 'A B' is not usable" in capsys.readouterr().err
    assert [path.name for path in toml.parent.iterdir()] == ["fed.toml"]


def test_what_is_shown_is_what_holds(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--config", str(toml)]) == 0
    assert 'url = "mqtt://127.0.0.1:1883"' in capsys.readouterr().out  # never set up: nothing stands in yet
    with_certificate(Site(toml.parent / "site"), COORDINATOR)
    assert run(["config", "show", "--config", str(toml)]) == 0
    lines = [line.split("#") for line in capsys.readouterr().out.splitlines() if "#" in line]
    shown = {setting.strip(): origin.strip() for setting, origin in lines}
    assert shown['url = "mqtts://broker.home.arpa:8883"'] == "default by [mosquitto]"
    assert shown['hosts = ["broker.home.arpa", "192.0.2.7"]'] == f"file {toml}"


def test_a_file_without_the_table_ends_no_broker(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text("")
    assert run(["broker", "stop", "--config", str(toml)]) == 1
    assert "[mosquitto]" in capsys.readouterr().err
