"""A device makes its own key, so that it never travels: it is born on the device and stays there.

    python3 -m fedmq_edge_agent.flashing.identity NAME FOLDER

writes FOLDER/key.pem, unless there is one already, and prints a certificate signing request for it. The authority signs
that; who owns a key proves it by the request's own signature.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_protocol.topics import check_id

KEY: str = "key.pem"


def make_request(name: str, folder: Path) -> bytes:
    """The request of device `name`, PEM, for the key in `folder`, which is made where it is missing.

    The key's file gets the folder's group, which may read it: the agent's.

    Raises:
        FlashError: what is there is no key of this kind.
    """
    check_id(name, what="device")
    path = folder / KEY
    key = _read(path) if path.exists() else _make(path)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _read(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FlashError(
            f"{path} is no key that a request could be made for: remove it, and a new one is made"
        )
    return key


def _make(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    growing = path.with_name(f"{path.name}.new")
    growing.unlink(missing_ok=True)
    with os.fdopen(os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), 0, path.parent.stat().st_gid)
            os.fchmod(file.fileno(), 0o640)
        file.flush()
        os.fsync(file.fileno())
    growing.replace(path)
    return key


if __name__ == "__main__":
    sys.stdout.write(make_request(sys.argv[1], Path(sys.argv[2])).decode())
