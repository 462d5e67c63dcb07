"""Scalars of a stage's steps for TensorBoard, an extra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def check_tensorboard() -> None:
    """Raises ValueError if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            'log.tensorboard: tensorboard is not installed; pip install "patarm[tensorboard]", or set it to false'
        )


class TensorboardLog:
    """One directory of events per stage.

    A run that resumes writes a new file there. Its first event tells TensorBoard to forget the steps from `first` on,
    those that are done again.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: an extra

        self._writer = SummaryWriter(str(directory), purge_step=first + 1)

    def write(self, record: Mapping[str, object]) -> None:
        """The numbers of one line of metrics.jsonl, on disk when it returns."""
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
