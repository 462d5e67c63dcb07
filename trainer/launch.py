"""Who started this process: runs that torchrun starts anew, after a rank has died, find their folder by it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def agent(environment: Mapping[str, str]) -> str:
    """The torchrun process of this node, which outlives its workers; empty if there is none.

    Host, process and when it began, since in a new container the same process number comes again.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    began = stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else ""  # in ticks since the boot
    return f"{socket.gethostname()}:{parent}:{began}"
