"""What a benchmark leaves in its folder: NAME.md to read, NAME.json to compute with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rollout.text_files import write_text


def write_result(out: Path, name: str, text: str, record: dict[str, Any]) -> None:
    """Each file is replaced as a whole, so that what was known before is there until more is."""
    write_text(out / f"{name}.md", text + "\n")
    write_text(out / f"{name}.json", json.dumps(record, indent=1) + "\n")
