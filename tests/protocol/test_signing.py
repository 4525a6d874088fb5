"""Keys: RFC 8032's own test vector, and files that keep them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedmq_protocol.errors import SignatureError, StoreError
from fedmq_protocol.signing import SigningKey, load_or_create_key, verify

RFC8032_TEST_2 = {
    "private": "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "public": "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    "message": "72",
    "signature": "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
}


def test_rfc_8032_vector() -> None:
    vector = {name: bytes.fromhex(value) for name, value in RFC8032_TEST_2.items()}
    key = SigningKey(vector["private"])
    assert key.public_key == vector["public"]
    assert key.sign(vector["message"]) == vector["signature"]
    verify(vector["public"], vector["signature"], vector["message"])


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    first = load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_key(path).public_key == first.public_key


def test_a_damaged_key_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("not a key")
    with pytest.raises(StoreError, match=str(path)):
        load_or_create_key(path)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_what_is_no_key_verifies_nothing(key: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(key, bytes(64), b"")
