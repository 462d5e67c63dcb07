"""How a user's mistake is told: one line on standard error."""

from __future__ import annotations

import sys


def tell(error: Exception) -> None:
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
