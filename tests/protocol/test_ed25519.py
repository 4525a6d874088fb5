"""Two libraries, one arithmetic: RFC 8032's vectors, and each library against the other."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.ed25519 import Cryptography, Library, OpenSSL, library

VECTORS = [  # section 7.1: TEST 1, TEST 2, TEST 3
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def openssl() -> OpenSSL:
    try:
        return OpenSSL()
    except (ImportError, OSError, AttributeError) as error:
        pytest.skip(f"this Python does not let its OpenSSL be reached: {error}")


@pytest.fixture(params=["openssl", "cryptography"])
def each(request: pytest.FixtureRequest) -> Library:
    return openssl() if request.param == "openssl" else Cryptography()


@pytest.mark.parametrize("vector", VECTORS)
def test_rfc_8032(each: Library, vector: tuple[str, str, str, str]) -> None:
    private, public, message, signature = map(bytes.fromhex, vector)
    key = each.private(private)
    assert (key.public_bytes, key.sign(message)) == (public, signature)
    assert each.verifies(public, signature, message)


@given(
    seed=st.binary(min_size=32, max_size=32), data=st.binary(max_size=300), flip=st.integers(0, 64 * 8 - 1)
)
def test_the_two_agree_on_what_is_a_signature_and_what_is_none(seed: bytes, data: bytes, flip: int) -> None:
    one, other = openssl(), Cryptography()
    signature, public = one.private(seed).sign(data), one.private(seed).public_bytes
    assert other.private(seed).sign(data) == signature
    assert other.private(seed).public_bytes == public
    broken = bytearray(signature)
    broken[flip // 8] ^= 1 << flip % 8
    for each in (one, other):
        assert each.verifies(public, signature, data)
        assert not each.verifies(public, bytes(broken), data)
        assert not each.verifies(public, signature, data + b"x")


@given(public=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_the_two_agree_on_rubbish(public: bytes, signature: bytes) -> None:
    assert openssl().verifies(public, signature, b"x") == Cryptography().verifies(public, signature, b"x")


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        # Points of small order, and numbers that are not reduced: what libraries quarrel about.
        (bytes(32), bytes(64)),
        (b"\x01" + bytes(31), b"\x01" + bytes(63)),
        (b"\xec" + b"\xff" * 30 + b"\x7f", bytes(64)),
        (b"\xed" + b"\xff" * 30 + b"\x7f", b"\x01" + bytes(63)),
        (b"\xff" * 32, b"\xff" * 64),
        (bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), bytes(64)),
    ],
)
def test_the_two_agree_on_what_lies_at_the_edge(public: bytes, signature: bytes) -> None:
    assert openssl().verifies(public, signature, b"x") == Cryptography().verifies(public, signature, b"x")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_other_lengths_are_no_keys_and_no_signatures(each: Library, length: int) -> None:
    key = each.private(bytes(32))
    with pytest.raises(ValueError, match=r"32|private"):
        each.private(bytes(length))
    assert not each.verifies(bytes(length), key.sign(b""), b"")
    if length != 64:
        assert not each.verifies(key.public_bytes, bytes(length), b"")


def test_what_fails_leaves_no_error_for_tls_to_find() -> None:
    library = ctypes.CDLL(sys.modules["_ssl"].__file__)
    assert not openssl().verifies(b"\xff" * 32, b"\xff" * 64, b"x")
    library.ERR_peek_error.restype = ctypes.c_ulong
    assert library.ERR_peek_error() == 0


def test_keys_are_freed_and_threads_do_not_disturb_each_other() -> None:
    lib = openssl()
    key = lib.private(bytes(32))
    expected = [key.sign(bytes([number])) for number in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            lib.private(bytes([number]) * 32)
            if key.sign(bytes([number])) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong


def test_where_openssl_cannot_be_reached_the_package_stands_in() -> None:
    script = (
        "import sys; sys.modules['_ssl'] = None\n"
        "from fedmq_protocol.ed25519 import Cryptography, library\n"
        "assert isinstance(library(), Cryptography)\n"
        "from fedmq_protocol.signing import SigningKey, verify\n"
        "key = SigningKey(bytes(32)); verify(key.public_key, key.sign(b'x'), b'x')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_openssl_that_believes_nobody_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy may let a curve sign and not verify: every message would be thrown away."""
    openssl()
    monkeypatch.setattr(OpenSSL, "verifies", lambda *_: False)
    assert isinstance(library.__wrapped__(), Cryptography)


def test_here_it_can_and_the_package_is_not_imported() -> None:
    if not isinstance(library(), OpenSSL):
        pytest.skip("this Python does not let its OpenSSL be reached")
    script = (
        "import sys\nfrom fedmq_protocol.signing import SigningKey\nSigningKey(bytes(32)).sign(b'x')\n"
        "assert 'cryptography' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
