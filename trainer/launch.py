"""Who started this process, and whether for the first time."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    id: str  # the same for all processes and restarts of one torchrun; empty without torchrun
    is_restart: bool  # torchrun started the processes anew: one of them had died

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch:
        """As torchrun's variables tell it. Without a rendezvous id, its process on this machine is what it goes by."""
        run_id = environment.get("TORCHELASTIC_RUN_ID", "")
        if run_id == "none":
            run_id = f"{socket.gethostname()}:{os.getppid()}"
        return cls(run_id, int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)
