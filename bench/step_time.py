"""Seconds of a GRPO step against n, the rollouts per response: as trees, and flat, where nothing is shared.

Both layouts train on the same rollouts of the same random model, interleaved step by step, so that a noisy machine
hits both alike; the unit of the paper's table 8 stands beside.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from tqdm import tqdm

from patarm_core.embedded.splits import EmbeddedConfig
from patarm_core.recipe import read_recipe
from trainer.config import Recipe
from trainer.distributed import World, world
from trainer.grpo import VALUES, roll_out, with_advantages
from trainer.inputs import load_inputs
from trainer.learner import Learner
from trainer.machine import machine
from trainer.policy_loss import PolicyLoss
from trainer.replica import JudgeReplica
from trainer.run_folder import Stopwatch, write_text
from trainer.tiny import make_model
from trainer.token_tree import TokenTree

# Table 8: Qwen3-8B, 4k tokens, 256 contexts a step, 16 A100s.
PAPER_S = {4: 125.0, 8: 246.0, 16: 486.0}
RECIPE = Path(__file__).parent.parent / "trainer" / "recipes" / "quickstart.toml"


def run_step_time(rollouts: list[int], num_steps: int, num_pairs: int, out: Path | None) -> list[dict]:
    """Prints and returns one record per n; writes step.json and step.md to `out`."""
    recipe = read_recipe(Recipe, [(str(RECIPE), RECIPE.read_text(encoding="utf-8"))])
    embedded = EmbeddedConfig(num_sft_pairs=200, num_rl_pairs=num_pairs, num_dev_pairs=0, num_held_out_pairs=0)
    sft, grpo = replace(recipe.sft, dev_every=0), replace(recipe.grpo, pairs_per_step=num_pairs, dev_every=0)
    rubrics = RECIPE.parent.parent.parent / recipe.prompt.rubrics_file
    recipe = replace(
        recipe, data=replace(recipe.data, embedded=embedded), sft=sft, grpo=grpo,
        prompt=replace(recipe.prompt, rubrics_file=str(rubrics)),
    )  # fmt: skip
    with world() as here, tempfile.TemporaryDirectory() as folder:
        inputs = load_inputs(recipe, "")
        make_model(folder, inputs.model_config, inputs.tokenizer, recipe.seed, recipe.model.small.init_std)
        replica = JudgeReplica(recipe, inputs.model_config, inputs.contexts, here)
        learner = Learner(folder, recipe.model, recipe.grpo.optim, 1000, here)
        records = [
            _measure(recipe, n, num_steps, inputs.data.pairs[:num_pairs], replica, learner, here) for n in rollouts
        ]
    text = _table(records, num_pairs)
    print(text)
    if out is not None:
        setting = {"machine": machine(), "recipe": RECIPE.name, "kl_coef": 0.0, "warm_up_steps": 1, "steps": num_steps}
        write_text(out / "step.md", text + "\n")
        write_text(out / "step.json", json.dumps(setting | {"records": records}, indent=1) + "\n")
    return records


def _measure(
    recipe: Recipe, n: int, num_steps: int, pairs, replica: JudgeReplica, learner: Learner, here: World
) -> dict:
    recipe = replace(recipe, rollout=replace(recipe.rollout, num_rollouts=n))
    token_loss = PolicyLoss(replace(recipe.grpo, kl_coef=0.0), None)
    seconds: dict[str, list[float]] = {"rollout_s": [], "tree_s": [], "flat_s": []}
    tokens = {}
    for step in tqdm(range(num_steps + 1), desc=f"n = {n}"):
        watch = Stopwatch(here.device)
        engine = replica.refreshed(learner)
        mine, _ = roll_out(engine, replica.shared, pairs, recipe, step, watch)
        trees, _ = with_advantages(mine, recipe, here)
        layouts = ["tree", "flat"]
        for layout in layouts if step % 2 else layouts[::-1]:
            learner.layout = layout
            with watch.phase(f"{layout}_s"):
                learner.update(trees, token_loss, recipe.grpo.tokens_per_micro_batch, step, VALUES)
            tokens[layout] = sum(TokenTree.of(leaves, layout == "tree").num_tokens for leaves in trees)
        if step > 0:  # the first warms up
            for name, values in seconds.items():
                values.append(watch.seconds[name])
    return {
        "num_rollouts": n,
        **{f"{name}_median": median(values) for name, values in seconds.items()},
        **{f"{name}_min": min(values) for name, values in seconds.items()},
        "tree_tokens": tokens["tree"],
        "flat_tokens": tokens["flat"],
        "flat_over_tree": median(f / t for f, t in zip(seconds["flat_s"], seconds["tree_s"], strict=True)),
        "paper_s": PAPER_S.get(n),
    }


def _table(records: list[dict], num_pairs: int) -> str:
    lines = [
        f"{2 * num_pairs} contexts a step; seconds: median (least). Tree: what judgments share is computed once.",
        "Paper: 256 contexts of Qwen3-8B at 4k tokens, 16 A100s (table 8), rollout and update.",
        "",
        "| n | rollout s | update s, tree | update s, flat | flat / tree | tokens, tree | flat | paper s/step |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        times = [f"{r[f'{name}_median']:.2f} ({r[f'{name}_min']:.2f})" for name in ("rollout_s", "tree_s", "flat_s")]
        cells = [str(r["num_rollouts"]), *times, f"{r['flat_over_tree']:.2f}"]
        cells += [f"{r['tree_tokens']:,}", f"{r['flat_tokens']:,}", f"{r['paper_s'] or '-'}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
