"""A result of `bench.step_time` or `bench.step_gpu` as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.step_estimate import ASSUMPTIONS, NUM_GPUS, table_8
from trainer.plan_time import PAPER_S, paper_line

_MB = 1e6


def tables(result: dict[str, Any]) -> str:
    options, means = result["options"], result["means"]
    lengths = ", ".join(f"{name} {mean / options['shorten']:.0f}" for name, mean in means.items())
    lines = [
        f"{result['machine']['device']}, {result['machine']['threads']} threads, commit {result['machine']['commit']}, "
        f"torch {result['machine']['torch']}, TRL {result['trl']}.",
        f"Random model, {result['num_parameters'] / 1e6:.1f} M parameters, float32; {options['pairs']} pairs a step; "
        f"mean tokens, divided by {options['shorten']:g}: {lengths}. "
        f"Medians of {options['steps']} turns (least to most).",
    ]
    if "trl_tries" in result:
        tries = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["trl_tries"].items())
        lines.append(f"TRL, a step with each setting, of which the fastest goes on: {tries}.")
    lines += ["", *_update(result["records"]), "", *_steps(result["records"])]
    if "invariance" in result:
        lines += ["", *_invariance(result["invariance"])]
    if "scaling" in result:
        lines += ["", *_scaling(result["scaling"])]
    return "\n".join([*lines, "", *estimate()])


def _update(records: Sequence[dict]) -> Iterable[str]:
    yield from ("### Update", "")
    head = ["n", "update tree, s", "update flat, s", "flat / tree", "TRL / tree", "tokens tree", "flat", "TRL"]
    yield from _head([*head, "peak tree, MB", "flat", "TRL"])
    for record in records:
        tree, flat, trl = (record.get(name) for name in ("tree", "flat", "trl"))
        yield _row(
            record["num_rollouts"], _spread(tree, "update_s"), _spread(flat, "update_s"),
            ratio(flat, tree, "update_s"), ratio(trl, tree, "update_s"),
            *(_count(one, "update_tokens") for one in (tree, flat, trl)),
            *(_mb(one) for one in (tree, flat, trl)),
        )  # fmt: skip


def _steps(records: Sequence[dict]) -> Iterable[str]:
    yield from ("### Step", "")
    head = ["n", "judgment tokens", "rollout, s", "weights, s", "reward, s", "step tree, s", "step flat, s"]
    head += [
        "TRL rollout, s",
        "TRL step, s",
        "TRL / tree",
        "rollout tokens computed",
        "TRL",
        "paper s/step",
        "5 + 30 n",
    ]
    yield from _head(head)
    for record in records:
        n, tree, flat, trl = (record.get(name) for name in ("num_rollouts", "tree", "flat", "trl"))
        yield _row(
            n, f"{record['loss_tokens']:,}", _spread(tree, "rollout_s"), f"{tree['sync_s']:.3f}",
            f"{tree['reward_s']:.3f}", _spread(tree, "step_s"), _spread(flat, "step_s"), _spread(trl, "rollout_s"),
            _spread(trl, "step_s"), ratio(trl, tree, "step_s"), _count(tree, "rollout_tokens"),
            _count(trl, "rollout_tokens"), PAPER_S.get(("Qwen3-8B", n), "-"), paper_line(n),
        )  # fmt: skip


def _invariance(found: dict[str, float]) -> Iterable[str]:
    yield from ("### Invariance", "")
    yield from _head(["what", "found", "most"])
    yield _row("gradient, tree and flat, relative, float64", f"{found['tree_flat']:.1e}", "1e-12")
    yield _row("gradient, micro-batches of 1, 2, 4 sequences and of all", f"{found['micro_batches']:.1e}", "1e-12")
    yield _row(
        "on-policy: largest &#124;log ratio&#124;, exact_logprobs, float32", f"{found['largest_logprob_gap']:g}", "0"
    )


def _scaling(found: dict[str, Any]) -> Iterable[str]:
    yield from (f"### One process and two, a thread each, n = {found['num_rollouts']}", "")
    yield from _head(["phase", "one, s", "two, s", "overhead: 2 x two / one - 1"])
    for phase in ("rollout_s", "update_s", "sync_s", "step_s"):
        overhead = f"{found['overhead'][phase]:+.0%}" if phase in found["overhead"] else "-"
        yield _row(phase.removesuffix("_s"), f"{found['one'][phase]:.2f}", f"{found['two'][phase]:.2f}", overhead)


def estimate() -> Iterable[str]:
    a = ASSUMPTIONS
    yield from (f"### Estimate of table 8 on {NUM_GPUS} A100s (computed, not measured)", "")
    yield (
        f"128 pairs a step; P {a['prompt']} + R {a['response']} + J {a['judgment']} tokens, {a['mfu']:.0%} of the "
        f"products, {a['bandwidth']:.0%} of the bandwidth in decoding (`trainer/plan_time.py`)."
    )
    yield ""
    yield from _head(["model", "n", "rollout, s", "update, s", "step, s", "table 8, s"])
    for r in table_8():
        seconds = [f"{r[name]:.0f}" for name in ("rollout_s", "update_s", "step_s")]
        yield _row(r["model"], r["num_rollouts"], *seconds, r["paper_s"])


def gpu_table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['device']}, commit {result['machine']['commit']}, torch {result['machine']['torch']}; "
        f"random weights, bfloat16, {result['options']['pairs']} pairs a step.",
        "",
        *_head(
            ["model", "n", "tree tokens", "rollout, s", "update, s", "of it optimiser, s", "step, s", "rollout share",
             "update tokens/s", "MFU", "without optimiser", "peak, GiB"]
        ),
    ]  # fmt: skip
    for r in result["records"]:
        if error := r.get("error"):
            lines.append(_row(r["model"], r["num_rollouts"], error, *"-" * 9))
            continue
        lines.append(_row(
            r["model"], r["num_rollouts"], f"{r['update_tokens']:,}", _spread(r, "rollout_s"), _spread(r, "update_s"),
            f"{r['optimizer_s']:.2f}", _spread(r, "step_s"), f"{r['rollout_s'] / r['step_s']:.0%}",
            f"{r['update_tokens_per_s']:,.0f}",
            *("-" if r[mfu] is None else f"{r[mfu]:.1%}" for mfu in ("mfu", "mfu_without_optimizer")),
            f"{r['peak_bytes'] / 2**30:.1f}",
        ))  # fmt: skip
    return "\n".join([*lines, "", *estimate()])


def ratio(one: dict | None, other: dict | None, name: str) -> str:
    """Of the medians; the turns' are their spread."""
    if one is None or other is None:
        return "-"
    ratios = [x / y for x, y in zip(one["turns"][name], other["turns"][name], strict=True)]
    return f"{one[name] / other[name]:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _spread(one: dict | None, name: str) -> str:
    if one is None:
        return "-"
    seconds = one["turns"][name]
    return f"{one[name]:.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def _count(one: dict | None, name: str) -> str:
    return "-" if one is None else f"{one[name]:,}"


def _mb(one: dict | None) -> str:
    return "-" if one is None or one["update_peak"] is None else f"{one['update_peak'] / _MB:,.0f}"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(*cells), "|" + "---:|" * len(cells)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
