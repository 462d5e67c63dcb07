"""Real public data beside the checkout, where there is any: tests that use it say so when it is absent."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str) -> Path:
    """The file or folder; skips the test that asks for what is not there."""
    if not (FOLDER / name).exists():
        pytest.skip(f"needs real data: {name} in {FOLDER}")
    return FOLDER / name
