"""A policy on verifiable prompts, trained in every way from the same start; the true checker measures all of them.

In the form of the paper's table 2 (before, SFT, DPO, RL with a scalar reward, RL with PaTaRM), with an upper bound (RL
with the true checker) and table 9's ratio: the step of RL with a judge over that with a scalar model. Every run is a
recipe of the trainer in a process of its own; one that is there already is not made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median, stdev

from bench.result_files import write_result
from bench.training import ROOT, train
from eval.tables import markdown
from patarm_core.policy_rows import ResponseExample, row_to_json
from rollout.contexts import load_pairs, load_rubrics, read_text
from rollout.text_files import read_records, write_text
from trainer.machine import machine
from trainer.over_optimisation import NAME

RECIPE = ROOT / "trainer" / "recipes" / "quickstart_rlhf.toml"
RUBRICS = ROOT / "patarm_core" / "embedded" / "rubrics.toml"
# name: (how the table calls it, the stage whose model it is)
METHODS = {
    "base": ("before", "sft"),
    "sft": ("SFT on the chosen responses", "sft"),
    "dpo": ("DPO, the data's pairs", "dpo"),
    "preferred": ("DPO, PaTaRM's preferences", "dpo"),
    "scalar": ("RL, scalar reward", "rlhf"),
    "judge": ("RL, PaTaRM", "rlhf"),
    "checker": ("RL, true checker", "rlhf"),
}
PAPER = "the paper's ratio (table 9) is 1.25 at 8B and 1.39 at 14B"


def run_downstream(judge: str, seeds: list[int], settings: list[str], work: Path, out: Path | None) -> str:
    """Prints and returns the table.

    Args:
        judge: Hugging Face directory of a PaTaRM judge of the embedded set, such as runs/quickstart/models/grpo.
        settings: more of the recipe's, for every run, as `key=value`; a stage that does not run passes over its own.
        work: folder of the runs.

    Raises:
        ValueError: one line; the judge is no such directory, which is told before anything is trained.
    """
    if not (Path(judge) / "config.json").is_file():
        raise ValueError(f"--judge {judge}: no model there; a quickstart leaves one in runs/quickstart/models/grpo")
    model, work = str(Path(judge).resolve()), work.resolve()  # the runs start elsewhere
    found = [_of_seed(model, seed, settings, work / f"seed-{seed}") for seed in seeds]
    text = _table(found, seeds)
    print(text)
    if out is not None:
        record = {"machine": machine(), "judge": judge, "settings": settings, "seeds": seeds, "runs": found}
        write_result(out, "downstream", text, record)
    return text


def _of_seed(judge: str, seed: int, settings: list[str], folder: Path) -> dict[str, dict]:
    # As many pairs for bt and dpo.
    drawn = [f"data.embedded_policy.seed={seed}", "data.embedded_policy.num_prompts=4000"]
    _train(folder / "base", [f"seed={seed}", *drawn, 'stages=["sft"]', *settings])
    data, start = folder / "base" / "data", folder / "base" / "models" / "sft"
    chosen = [
        ResponseExample(prompt=pair.prompt, response=pair.chosen, source=pair.source, id=pair.id)
        for pair in load_pairs(data / "pairs.jsonl", load_rubrics(str(RUBRICS)))
    ]
    write_text(folder / "chosen.jsonl", "".join(row_to_json(row) + "\n" for row in chosen))
    files = ['data.source="files"', 'data.checker="embedded"', f"seed={seed}", f"model.path={start}"]
    held_out = [f"data.{name}={data / name}.jsonl" for name in ("dev_prompts", "held_out_prompts")]
    pairs = [f"data.pairs={data / 'pairs.jsonl'}", f"prompt.rubrics_file={RUBRICS}"]
    # Rates for 0.7 M parameters. The scalar model is measured on the pairs of the dev prompts.
    bt = ["bt.epochs=2", "bt.pairs_per_step=16", "bt.tokens_per_micro_batch=4096", "bt.optim.lr=1e-3"]
    bt += [f"data.held_out={data / 'dev.jsonl'}"]
    dpo = ["dpo.epochs=1", "dpo.pairs_per_step=16", "dpo.tokens_per_micro_batch=4096", "dpo.optim.lr=1e-4"]
    sft = [f"data.responses={folder / 'chosen.jsonl'}", "sft.optim.lr=3e-4", "sft.optim.warmup_steps=3", "sft.steps=60"]
    _train(folder / "sft", [*files, *held_out, 'stages=["sft"]', *sft, *settings])
    _train(folder / "dpo", [*files, *held_out, *pairs, 'stages=["dpo"]', *dpo, *settings])
    _train(folder / "bt", [*files, *pairs, 'role="judge"', 'stages=["bt"]', *bt, *settings])
    prompts = [*files, *held_out, f"data.prompts={data / 'prompts.jsonl'}"]
    rewards = {
        "scalar": ["rlhf.reward.kind=scalar", f"rlhf.reward.model={folder / 'bt' / 'models' / 'bt'}"],
        "judge": ["rlhf.reward.kind=judge", f"rlhf.reward.model={judge}", f"rlhf.reward.prompt.rubrics_file={RUBRICS}"],
        "checker": ["rlhf.reward.kind=checker"],
    }
    for name, reward in rewards.items():
        _train(folder / name, [*prompts, 'stages=["rlhf"]', *settings, *reward])
    preferred = ['stages=["dpo"]', "dpo.preferences=reward", *dpo, *settings, *rewards["judge"]]
    _train(folder / "preferred", [*prompts, *preferred])
    found = {name: _result(folder / name, stage) for name, (_, stage) in METHODS.items()}
    told = json.loads(read_text(folder / "bt" / "report.json"))["held_out"]["bt"]
    found["scalar"]["pair_accuracy"] = told["votes"][0]["accuracy"]
    return found


def _train(folder: Path, settings: list[str]) -> None:
    train([str(RECIPE)], settings, folder)


def _result(folder: Path, stage: str) -> dict:
    measured = json.loads(read_text(folder / "report.json"))["held_out_prompts"][stage]
    steps = [record for record in read_records(folder / "metrics.jsonl") if record["stage"] == stage]
    correlations = [step["score_correlation"] for step in steps if "score_correlation" in step]
    # None without a reference (rlhf.kl_coef = 0), and null of a step that was skipped.
    divergences = [step["kl"] for step in steps[-10:] if step.get("kl") is not None]
    return {
        **{key: measured.get(key) for key in ("low", "high")},
        **{key: measured[key] for key in ("accuracy", "all_right", "completion_tokens", "by_task")},
        "step_s": median(step["step_s"] for step in steps),
        "kl": fmean(divergences) if divergences else None,
        "is_warned": any(line["sign"] == NAME for line in read_records(folder / "warnings.jsonl")),
        "correlation": [fmean(part) for part in (correlations[:10], correlations[-10:])] if correlations else None,
    }


def _table(found: list[dict[str, dict]], seeds: list[int]) -> str:
    tasks = sorted(found[0]["base"]["by_task"])
    rows = [
        ["policy", "right items", *tasks, "all right", "tokens", "r with the checker, first to last", "KL", "s/step"]
    ]
    for name, (label, _) in METHODS.items():
        results = [of_seed[name] for of_seed in found]
        values = [result["accuracy"] for result in results]
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        row = [label, f"{100 * fmean(values):.1f}{spread}"]
        row += [f"{100 * fmean(result['by_task'][task] for result in results):.1f}" for task in tasks]
        row.append(f"{100 * fmean(result['all_right'] for result in results):.1f}")
        row.append(f"{fmean(result['completion_tokens'] for result in results):.1f}")
        both = [result["correlation"] for result in results if result["correlation"]]
        row.append(" to ".join(f"{fmean(part):.2f}" for part in zip(*both, strict=True)) if both else "-")
        divergences = [result["kl"] for result in results if result["kl"] is not None]
        row.append(f"{fmean(divergences):.2f}" if divergences else "-")
        rows.append([*row, f"{median(result['step_s'] for result in results):.2f}"])
    ratios = [of_seed["judge"]["step_s"] / of_seed["scalar"]["step_s"] for of_seed in found]
    told = f"Held-out prompts, percent by the true checker, seeds {', '.join(map(str, seeds))} (mean ± deviation)."
    step = f"A step with the judge takes {median(ratios):.2f} times as long as with the scalar model; {PAPER}."
    scalar = fmean(of_seed["scalar"]["pair_accuracy"] for of_seed in found)
    warned = {METHODS[name][0]: sum(of_seed[name]["is_warned"] for of_seed in found) for name in found[0]}
    signs = ", ".join(f"{label} {num} of {len(found)}" for label, num in warned.items() if num) or "none"
    right = f"The scalar model is right on {scalar:.1%} of the dev prompts' pairs. Runs warned of {NAME}: {signs}."
    return "\n".join([told, "", markdown(rows), "", step, right])
