"""A device's own key: made once, for its eyes alone, and proven by the request that it signs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.identity import make_request
from fedmq_protocol.errors import UsageError


def test_a_request_is_signed_by_the_key_that_lies_there(tmp_path: Path) -> None:
    request = x509.load_pem_x509_csr(make_request("dev-1", tmp_path))
    assert request.is_signature_valid
    assert [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["dev-1"]
    key = tmp_path / "key.pem"
    assert key.stat().st_mode & 0o077 == (0o040 if os.geteuid() == 0 else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]
    if (program := shutil.which("openssl")) is not None:
        (tmp_path / "csr.pem").write_bytes(make_request("dev-1", tmp_path))
        command = [program, "req", "-in", str(tmp_path / "csr.pem"), "-noout", "-verify", "-pubkey"]
        theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ours = subprocess.run(
            [program, "pkey", "-in", str(key), "-pubout"], capture_output=True, text=True, check=True
        ).stdout
        assert ours in theirs


def test_the_key_stays_whatever_is_asked_again(tmp_path: Path) -> None:
    make_request("dev-1", tmp_path)
    before = (tmp_path / "key.pem").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "fedmq_edge_agent.flashing.identity", "dev-1", str(tmp_path)],
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"-----BEGIN CERTIFICATE REQUEST-----")
    assert before not in done.stdout
    assert (tmp_path / "key.pem").read_bytes() == before


def test_what_a_kill_left_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "key.pem.new").write_text("half a k")
    assert x509.load_pem_x509_csr(make_request("dev-1", tmp_path)).is_signature_valid
    assert not (tmp_path / "key.pem.new").exists()


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        make_request("@coordinator", tmp_path)
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(FlashError, match="remove it, and a new one is made"):
        make_request("dev-1", tmp_path)
