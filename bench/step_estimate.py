"""What the configurations of the paper's table 8 would take here, on its 16 A100s: an estimate, not a measurement.

By the formulas of `trainer.plan_time`; `trainer/main.py --plan` prints them line by line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from patarm_core.recipe import read_recipe
from rollout.shapes import QWEN3
from trainer.config import Recipe
from trainer.plan_job import GPUS, Job
from trainer.plan_time import PAPER_S, rows, seconds, step_s

ASSUMPTIONS = {"prompt": 600, "response": 450, "judgment": 1000, "mfu": 0.4, "bandwidth": 0.6}
NUM_GPUS = 16
_RECIPE = Path(__file__).parent.parent / "trainer" / "recipes" / "qwen3_8b_grpo_point.toml"
# Of 14B: its weights take more of a GPU; as in its recipe.
_KV_GIB = {"Qwen3-8B": 40.0, "Qwen3-14B": 28.0}


def table_8() -> list[dict]:
    """Per row of table 8 at 4,096 tokens: seconds of a step by phase, and the paper's."""
    recipe = read_recipe(Recipe, [(_RECIPE.name, _RECIPE.read_text(encoding="utf-8"))])
    found = []
    for (model, n), paper_s in PAPER_S.items():
        rollout = replace(recipe.rollout, num_rollouts=n, kv_gib=_KV_GIB[model])
        job = Job(
            recipe=replace(recipe, rollout=rollout), stage="grpo", shape=QWEN3[model], gpu=GPUS["A100"],
            num_gpus=NUM_GPUS, **ASSUMPTIONS,
        )  # fmt: skip
        phases = {f"{phase}_s": sum(of_phase.values()) for phase, of_phase in seconds(job).items()}
        record = {"model": model, "num_rollouts": n, "step_s": step_s(job), "rows": rows(job), "paper_s": paper_s}
        found.append(record | phases)
    return found
