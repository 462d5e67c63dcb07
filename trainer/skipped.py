"""Steps without a finite loss or gradient: skipped, counted, and in the end reason to stop, with the evidence saved."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from rollout.text_files import write_text
from rollout.weights import whole
from trainer.distributed import World
from trainer.mistakes import Halt
from trainer.run_folder import RunFolder
from trainer.token_tree import TokenTree


class SkippedSteps:
    """Counts the optimiser steps that were skipped in a row. The count spans steps (trainer/checkpoint.py)."""

    def __init__(self, most: int, world: World) -> None:
        self.most, self.world, self.in_a_row = most, world, 0
        self.save: Callable[[dict], object] = lambda evidence: "nowhere"  # returns where; a run sets it for each step

    def state_dict(self) -> dict:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state["in_a_row"]

    def count(
        self, is_finite: bool, model: nn.Module, batches: Sequence[Sequence[TokenTree]], losses: list[Tensor]
    ) -> None:
        """Called by all ranks after every backward pass, before gradients are clipped or dropped.

        Args:
            batches: this rank's micro-batches; `losses` are their shares of the step's loss.

        Raises:
            Halt: this is the last of `most` steps in a row.
        """
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if self.in_a_row < self.most:
            return
        mine = [
            {
                "rank": self.world.rank,
                "loss": _number(loss),
                "tokens": sum(tree.num_tokens for tree in batch),
                "of": _names(batch),
            }
            for batch, loss in zip(batches, losses)
        ]
        evidence = {
            "micro_batches": [record for rank in self.world.gather(mine) for record in rank],
            "gradient_norms": {name: _norm(parameter.grad) for name, parameter in model.named_parameters()},
        }
        where = self.save(evidence)
        raise Halt(
            f"loss or gradient was not finite in {self.most} optimiser steps in a row (optim.max_skipped_steps); "
            f"micro-batches, gradient norms and the checkpoint before are in {where}"
        )


def save_evidence(folder: RunFolder, stage: str, step: int, before: Path | None, evidence: dict) -> Path:
    """Writes a folder for people: evidence.json, the recipe, and the last checkpoint, which later ones do not replace.

    Args:
        step: that failed, from 1.
        before: the last complete checkpoint.
    """
    place = folder.path / "evidence" / f"{stage}-{step:06d}"
    if folder.is_writer:
        shutil.rmtree(place, ignore_errors=True)
        text = json.dumps({"stage": stage, "step": step, **evidence}, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(place / "evidence.json", text)
        shutil.copy(folder.path / "recipe.toml", place / "recipe.toml")
        if before is not None:
            shutil.copytree(before, place / before.name, copy_function=_link)
    return place


def _names(batch: Sequence[TokenTree]) -> list[str]:
    """Of the pairs or rows that a micro-batch is made of."""
    return list(dict.fromkeys(leaf.name for tree in batch for leaf in tree.leaves))


def _norm(gradient: Tensor | None) -> float | str | None:
    if gradient is None:
        return None
    return _number(whole(nn.utils.get_total_norm([gradient])))


def _number(x: Tensor) -> float | str:
    """As JSON has it: what is not finite has no number there, and is told as "nan", "inf" or "-inf"."""
    number = float(x)
    return number if math.isfinite(number) else str(number)


def _link(source: str, target: str) -> None:
    """A second name of the same file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
