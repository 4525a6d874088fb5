"""How much memory a broker on this machine takes.

Mosquitto's own account (`$SYS/broker/heap`) leaves out OpenSSL's memory, and 2.0.11 with the security plugin
miscounts the rest; the system knows.
"""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(pid_file: Path) -> int | None:
    """Resident memory of the process that a file names; None where it is not here, or the system does not tell."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, ValueError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
