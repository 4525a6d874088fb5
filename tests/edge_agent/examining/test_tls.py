"""Certificates and clocks that are wrong in every way, shown to a real Mosquitto."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding
from fedmq_edge_agent.examining.handshake import shake_hands
from tests.edge_agent.examining.clinic import DEVICE, HOSTS, Authority, Clinic, be_known, findings_of

DAY_S = 86_400.0
NAMES = (
    "agent",
    "state",
    "certificate",
    "clock",
    "name",
    "route",
    "tls",
    "connection",
    "identity",
    "rights",
    "packets",
)


async def examined(clinic: Clinic, port: int, **broker: Any) -> dict[str, Finding]:
    settings = clinic.settings(port, broker)
    be_known(settings)
    return await findings_of(settings, *NAMES)


async def test_a_device_that_is_well(clinic: Clinic) -> None:
    found = await examined(clinic, clinic.open())
    for name in ("certificate", "name", "route", "tls", "connection", "identity", "rights", "packets"):
        assert found[name].level == "ok", found[name]
    assert "TLSv1.3" in found["tls"].found


async def test_another_authority_than_the_brokers(clinic: Clinic) -> None:
    port = clinic.open()
    other = Authority(clinic.folder / "other", "elsewhere")
    certificate, key = other.issue(DEVICE)
    found = await examined(clinic, port, ca_file=other.ca, cert_file=certificate, key_file=key)
    assert found["tls"].level == "failed"
    assert "by 'home authority'" in found["tls"].found
    assert "'elsewhere authority'" in found["tls"].found
    assert "ca_file" in found["tls"].mend
    assert found["connection"].level == "skipped"
    assert "tls" in found["connection"].found


async def test_an_older_authority_of_the_same_federation(clinic: Clinic) -> None:
    """As where the authority was made anew, and the device has what the old one issued."""
    port = clinic.open()
    before = Authority(clinic.folder / "before")
    certificate, key = before.issue(DEVICE)
    found = await examined(clinic, port, ca_file=before.ca, cert_file=certificate, key_file=key)
    assert found["tls"].level == "failed"
    assert "holds another authority of the same name, of 2" in found["tls"].found
    assert "enroll again" in found["tls"].mend


async def test_a_certificate_of_another_authority(clinic: Clinic) -> None:
    """Where ca_file is the broker's, and the device's own certificate comes from elsewhere."""
    port = clinic.open()
    certificate, key = Authority(clinic.folder / "other", "elsewhere").issue(DEVICE)
    found = await examined(clinic, port, cert_file=certificate, key_file=key)
    assert found["certificate"].level == "failed"
    assert "elsewhere authority" in found["certificate"].found
    assert found["tls"].level == "skipped"


async def test_the_broker_judges_an_authority_that_the_device_cannot(clinic: Clinic) -> None:
    port = clinic.open()
    other = Authority(clinic.folder / "other", "elsewhere")
    certificate, key = other.issue(DEVICE)
    both = clinic.folder / "both.pem"
    both.write_bytes(clinic.authority.ca.read_bytes() + other.ca.read_bytes())
    found = await examined(clinic, port, ca_file=both, cert_file=certificate, key_file=key)
    assert found["certificate"].level == "ok"
    assert found["tls"].level == "failed"
    assert "its authority is not the broker's" in found["tls"].found


async def test_a_host_that_the_brokers_certificate_does_not_name(clinic: Clinic) -> None:
    port = clinic.open(server=clinic.authority.issue("broker", hosts=("broker.home.arpa", "192.0.2.7")))
    found = await examined(clinic, port)
    assert found["tls"].level == "failed"
    assert "for broker.home.arpa, 192.0.2.7, and not for 127.0.0.1" in found["tls"].found
    assert "hosts" in found["tls"].mend


async def test_a_brokers_certificate_that_has_expired(clinic: Clinic) -> None:
    found = await examined(
        clinic, clinic.open(server=clinic.authority.issue("broker", hosts=HOSTS, days=(-9, -2)))
    )
    assert found["tls"].level == "failed"
    assert "this device's clock says" in found["tls"].found
    assert "fedmq broker" in found["tls"].mend


async def test_a_brokers_certificate_of_tomorrow(clinic: Clinic) -> None:
    """So it is where the clock is behind: the clock is named."""
    found = await examined(
        clinic, clinic.open(server=clinic.authority.issue("broker", hosts=HOSTS, days=(1, 9)))
    )
    assert found["tls"].level == "failed"
    assert "the clock is behind" in found["tls"].mend


async def test_a_brokers_certificate_that_expires_soon(clinic: Clinic) -> None:
    found = await examined(
        clinic, clinic.open(server=clinic.authority.issue("broker", hosts=HOSTS, days=(-9, 3)))
    )
    assert found["tls"].level == "warning"
    assert "expires in 3 days" in found["tls"].found or "expires in 72 hours" in found["tls"].found
    assert found["connection"].level == "ok"


async def test_an_own_certificate_that_has_expired(clinic: Clinic) -> None:
    port = clinic.open()
    certificate, key = clinic.authority.issue(DEVICE, days=(-9, -2))
    found = await examined(clinic, port, cert_file=certificate, key_file=key)
    assert found["certificate"].level == "failed"
    assert "expired" in found["certificate"].found
    assert f"fedmq device renew {DEVICE}" in found["certificate"].mend


async def test_the_broker_refuses_what_this_devices_clock_still_takes(clinic: Clinic) -> None:
    """The clock stands where the certificate was still good."""
    port = clinic.open()
    certificate, key = clinic.authority.issue(DEVICE, days=(-9, -2))
    settings = clinic.settings(port, {"cert_file": certificate, "key_file": key})
    device = Device(settings, clock=lambda: time.time() - 4 * DAY_S)
    found = await findings_of(device, *NAMES)
    assert found["certificate"].level == "warning"
    assert found["tls"].level == "failed"
    assert "by the clock here it has not" in found["tls"].found


async def test_a_list_of_revoked_certificates_that_has_run_out(clinic: Clinic) -> None:
    """Then the broker lets nobody in, and calls it the certificate's fault."""
    clinic.authority.write_list(ends=-1)
    found = await examined(clinic, clinic.open())
    assert found["certificate"].level == "ok"
    assert found["tls"].level == "failed"
    assert "list of revoked certificates run out" in found["tls"].mend


async def test_an_own_certificate_that_expires_soon(clinic: Clinic) -> None:
    port = clinic.open()
    certificate, key = clinic.authority.issue(DEVICE, days=(-300, 12.5))
    found = await examined(clinic, port, cert_file=certificate, key_file=key)
    assert found["certificate"].level == "warning"
    assert "12 days" in found["certificate"].found
    assert found["connection"].level == "ok"


async def test_a_revoked_certificate(clinic: Clinic) -> None:
    """In TLS 1.3 the client's own handshake succeeds; the broker's verdict comes after it."""
    certificate, key = clinic.authority.issue(DEVICE, revoked=True)
    found = await examined(clinic, clinic.open(), cert_file=certificate, key_file=key)
    assert found["certificate"].level == "ok"
    assert found["tls"].level == "failed"
    assert "it is revoked" in found["tls"].found
    assert f"fedmq device enroll {DEVICE}" in found["tls"].mend


async def test_a_revoked_certificate_in_tls_1_2(clinic: Clinic) -> None:
    certificate, key = clinic.authority.issue(DEVICE, revoked=True)
    port = clinic.open("tls_version tlsv1.2", "ciphers ECDHE-ECDSA-AES128-GCM-SHA256")
    found = await examined(clinic, port, cert_file=certificate, key_file=key)
    assert "it is revoked" in found["tls"].found


async def test_no_certificate_where_one_is_asked_for(clinic: Clinic) -> None:
    found = await examined(clinic, clinic.open(), cert_file=None, key_file=None)
    assert found["certificate"].level == "warning"
    assert found["tls"].level == "failed"
    assert "cert_file and key_file" in found["tls"].mend


async def test_a_key_of_another_certificate(clinic: Clinic) -> None:
    _, key = clinic.authority.issue(DEVICE)
    found = await examined(clinic, clinic.open(), key_file=key)
    assert found["certificate"].level == "failed"
    assert "is not the key of" in found["certificate"].found


@pytest.mark.parametrize("setting", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("content", [None, "nonsense"])
async def test_files_that_are_missing_or_nonsense(clinic: Clinic, setting: str, content: str | None) -> None:
    path = clinic.folder / "wrong.pem"
    if content is not None:
        path.write_text(content)
    found = (await findings_of(clinic.settings(1, {setting: path}), "certificate"))["certificate"]
    assert found.level == "failed"
    assert f"{setting} {path}" in found.found
    assert setting in found.mend


async def test_a_certificate_in_anothers_name(clinic: Clinic) -> None:
    port = clinic.open()
    certificate, key = clinic.authority.issue("dev-2")
    found = await examined(clinic, port, cert_file=certificate, key_file=key)
    assert found["certificate"].level == "warning"
    assert "'dev-2'" in found["certificate"].found
    assert found["rights"].level == "failed"
    assert "publish on dev/dev-1/presence" in found["rights"].found


async def test_a_key_that_everybody_may_read(clinic: Clinic) -> None:
    certificate, key = clinic.authority.issue(DEVICE)
    key.chmod(0o644)
    found = await findings_of(clinic.settings(1, {"cert_file": certificate, "key_file": key}), "certificate")
    assert found["certificate"].level == "warning"
    assert "chmod" in found["certificate"].mend


async def test_a_clock_that_stands_before_the_certificates(clinic: Clinic) -> None:
    settings = clinic.settings(clinic.open())
    device = Device(settings, clock=lambda: 1_700_000_000.0)  # 2023-11-14
    found = await findings_of(device, "certificate", "clock")
    assert found["clock"].level == "failed"
    assert "2023-11-14" in found["clock"].found
    assert "timedatectl" in found["clock"].mend


async def test_a_port_that_does_not_speak_tls(clinic: Clinic) -> None:
    settings = clinic.settings(1)
    port = clinic.start_broker("listener {port} 127.0.0.1\nallow_anonymous true").port
    found = await examined(clinic, port)
    assert found["tls"].level == "failed"
    assert "TLS" in found["tls"].found
    assert settings.id == DEVICE


async def test_no_tls_is_a_warning_where_the_broker_is_elsewhere(clinic: Clinic) -> None:
    for host, level in (("127.0.0.1", "ok"), ("localhost", "ok"), ("192.0.2.1", "warning")):
        settings = clinic.settings(1, {"url": f"mqtt://{host}:1883"})
        found = await findings_of(settings, "tls")
        assert found["tls"].level == "skipped"  # its needs were not looked at
        assert (await shake_hands(Device(settings))).level == level


async def test_any_certificate_is_a_warning(clinic: Clinic) -> None:
    port = clinic.open(server=clinic.authority.issue("broker", hosts=("elsewhere",)))
    found = await examined(clinic, port, tls_insecure=True)
    assert found["tls"].level == "warning"
    assert "tls_insecure" in found["tls"].mend
    assert found["connection"].level == "ok"
