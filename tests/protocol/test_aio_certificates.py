"""What is said where the broker does not accept our certificate; each alert in OpenSSL's own words."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from fedmq_protocol.aio_reasons import explain_failed_connect, explain_silence
from fedmq_protocol.broker_settings import BrokerSettings

OURS = BrokerSettings(url="mqtts://broker:8883", cert_file=Path("cert.pem"))


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "our certificate was revoked"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "let the operator renew it"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "Set cert_file and key_file"),
    ],
)
def test_an_alert_is_explained(reason: str, said: str) -> None:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    assert said in explain_failed_connect(error, OURS).text


def test_a_connection_that_is_closed_may_be_about_our_certificate() -> None:
    """In TLS 1.3 the alert comes after the handshake, and may be lost with the connection."""
    plain = BrokerSettings(url="mqtts://broker:8883")
    assert "still accept our certificate" in explain_silence(OURS, closed=True).text
    assert "certificate" not in explain_silence(plain, closed=True).text
    assert "certificate" not in explain_silence(OURS, closed=False).text
