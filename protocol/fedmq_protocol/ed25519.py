"""Ed25519 (RFC 8032) by the OpenSSL that Python's own `ssl` has loaded; by `cryptography` where that cannot be reached.

A device's supervisor has that library in memory for TLS anyway. `cryptography` brings an OpenSSL of its own, which is a
seventh of the supervisor's memory (ADR 0016). Both do the same arithmetic, and signatures are the same to the bit.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from functools import cache
from typing import Any, Final, Protocol

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_SHORT_NAME: Final = b"ED25519"
_VECTOR: Final = tuple(  # RFC 8032, 7.1, TEST 2: private key, public key, message, signature
    map(
        bytes.fromhex,
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            (
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
                "387b2eaeb4302aeeb00d291612bb0c00"
            ),
        ),
    )
)


class Private(Protocol):
    """A private key."""

    public_bytes: bytes
    """32 bytes by which others know it."""

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature."""
        ...


class Library(Protocol):
    """One way to Ed25519."""

    def private(self, seed: bytes) -> Private:
        """The key of these 32 bytes; raises ValueError where they are not 32."""
        ...

    def verifies(self, public_bytes: bytes, signature: bytes, data: bytes) -> bool:
        """Whether it is this key's signature of `data`; never where key or signature has another length."""
        ...


@cache
def library() -> Library:
    """The one to use here: the loaded OpenSSL, if it passes RFC 8032's test (policy may forbid the curve)."""
    try:
        loaded = OpenSSL()
        seed, public, message, signature = _VECTOR
        key = loaded.private(seed)
        signs = (key.public_bytes, key.sign(message)) == (public, signature)
        if signs and loaded.verifies(public, signature, message):
            return loaded
    except (ImportError, OSError, AttributeError, ValueError):
        pass
    return Cryptography()


class OpenSSL:
    """By ctypes, with `libcrypto` as a dependency of the module behind `ssl`. 1.1.1 and newer have what is called here.

    Raises:
        ImportError: this Python has no `ssl`.
        OSError: likewise, or it cannot be opened.
        AttributeError: it is built in, or has another library behind it.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(importlib.import_module("_ssl").__file__)
        pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
        size_pointer = ctypes.POINTER(ctypes.c_size_t)

        def function(name: str, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - ctypes has no names for these
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        self._new_private = function(
            "EVP_PKEY_new_raw_private_key", pointer, ctypes.c_int, pointer, text, size
        )
        self._new_public = function("EVP_PKEY_new_raw_public_key", pointer, ctypes.c_int, pointer, text, size)
        self._get_public = function("EVP_PKEY_get_raw_public_key", ctypes.c_int, pointer, text, size_pointer)
        self._free_key = function("EVP_PKEY_free", None, pointer)
        self._new_context = function("EVP_MD_CTX_new", pointer)
        self._free_context = function("EVP_MD_CTX_free", None, pointer)
        begin = (ctypes.c_int, pointer, pointer, pointer, pointer, pointer)
        self._begin_signing = function("EVP_DigestSignInit", *begin)
        self._begin_verifying = function("EVP_DigestVerifyInit", *begin)
        self._sign = function("EVP_DigestSign", ctypes.c_int, pointer, text, size_pointer, text, size)
        self._verify = function("EVP_DigestVerify", ctypes.c_int, pointer, text, size, text, size)
        self._clear_errors = function("ERR_clear_error", None)
        self._curve: int = function("OBJ_sn2nid", ctypes.c_int, text)(_SHORT_NAME)

    def private(self, seed: bytes) -> Private:
        """As in `Library`."""
        return _OpenSSLKey(self, seed)

    def verifies(self, public_bytes: bytes, signature: bytes, data: bytes) -> bool:
        """As in `Library`."""
        if len(public_bytes) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            return False
        key = self._new_public(self._curve, None, public_bytes, len(public_bytes))
        context = self._new_context()
        try:
            return (
                bool(key and context)
                and self._begin_verifying(context, None, None, None, key) == 1
                and self._verify(context, signature, len(signature), data, len(data)) == 1
            )
        finally:
            self._free_context(context)
            self._free_key(key)
            self._clear_errors()  # or `ssl` would take them for its own

    def new_key(self, seed: bytes) -> tuple[int, bytes]:
        """A key that has to be freed, and its public bytes.

        Raises:
            ValueError: these are no 32 bytes, or OpenSSL does not take them.
        """
        if len(seed) != KEY_BYTES:
            msg = f"an Ed25519 key has {KEY_BYTES} bytes, and these are {len(seed)}"
            raise ValueError(msg)
        key: int | None = self._new_private(self._curve, None, seed, len(seed))
        room, length = ctypes.create_string_buffer(KEY_BYTES), ctypes.c_size_t(KEY_BYTES)
        if not key or self._get_public(key, room, ctypes.byref(length)) != 1:
            self._free_key(key)
            self._clear_errors()
            msg = "OpenSSL takes no Ed25519 keys here"
            raise ValueError(msg)
        return key, room.raw

    def free_key(self, key: int) -> None:
        """Let go of a key."""
        self._free_key(key)

    def sign(self, key: int, data: bytes) -> bytes:
        """Sign.

        Raises:
            ValueError: OpenSSL does not sign.
        """
        room, length = ctypes.create_string_buffer(SIGNATURE_BYTES), ctypes.c_size_t(SIGNATURE_BYTES)
        context = self._new_context()
        try:
            signed = (
                bool(context)
                and self._begin_signing(context, None, None, None, key) == 1
                and self._sign(context, room, ctypes.byref(length), data, len(data)) == 1
            )
        finally:
            self._free_context(context)
            self._clear_errors()
        if not signed:
            msg = "OpenSSL does not sign"
            raise ValueError(msg)
        return room.raw


class _OpenSSLKey:
    def __init__(self, library: OpenSSL, seed: bytes) -> None:
        self._library = library
        self._key, self.public_bytes = library.new_key(seed)
        weakref.finalize(self, library.free_key, self._key).atexit = False

    def sign(self, data: bytes) -> bytes:
        return self._library.sign(self._key, data)


class Cryptography:
    """By the package of that name."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - 7 MB, which are not always needed
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - likewise

        self._keys = ed25519
        self._invalid = InvalidSignature

    def private(self, seed: bytes) -> Private:
        """As in `Library`."""
        return _CryptographyKey(self._keys.Ed25519PrivateKey.from_private_bytes(seed))

    def verifies(self, public_bytes: bytes, signature: bytes, data: bytes) -> bool:
        """As in `Library`."""
        try:
            self._keys.Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, data)
        except (self._invalid, ValueError):
            return False
        return True


class _CryptographyKey:
    def __init__(self, key: Any) -> None:  # noqa: ANN401 - of a package that is not imported here
        self._key = key
        self.public_bytes: bytes = key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._key.sign(data)
        return signature
