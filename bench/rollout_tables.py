"""What was measured of the rollout engines, as Markdown."""

from __future__ import annotations


def tables(records: list[dict], setting: dict) -> str:
    """One table per model and workload; rows are engines. Without records just where they were measured."""
    peers = ", ".join(f"{name} {version}" for name, version in setting["peers"].items())
    where = (
        f"{setting['machine']['device']}; torch {setting['machine']['torch']}, {peers}; "
        f"{setting['machine']['threads']} threads; {setting['repeats']} turns, commit {setting['machine']['commit']}."
    )
    if not records:
        return where
    lines = [
        f"{where} {setting['dtype']}. Contexts: {setting['data']}; lengths divided by {setting['shorten']}.",
        "",
        "Tokens that were asked for, per second: median of the turns, seconds (least-most). Ours over it: median of "
        "the turns' ratios, above 1 where ours is faster. Each setting had one turn before; the best goes on.",
    ]
    for record in records:
        lines += ["", f"### {record['model']}, {record['workload']}", "", *_about(record), "", *_table(record)]
    return "\n".join(lines)


def _about(record: dict) -> list[str]:
    r, counts = record, record["counts"]
    lines = [
        f"{r['num_parameters'] / 1e6:.1f} M parameters; {r['num_contexts']} contexts, {r['num_sequences']} samples; "
        f"{r['num_new_tokens']:,} new tokens, the longest {r['longest']}; {r['num_context_tokens']:,} context tokens, "
        f"{r['num_distinct_tokens']:,} of them distinct in a tree, {r['num_copied_tokens']:,} with a copy per sample."
    ]
    if counts:
        saved = 1 - counts["num_prefilled_tokens"] / r["num_copied_tokens"]
        lines.append(
            f"Ours computed {counts['num_prefilled_tokens']:,} context tokens: {saved:.0%} of the copies saved. It "
            f"decoded {counts['num_decoded_tokens'] / counts['num_steps']:.1f} tokens a step over "
            f"{counts['num_steps']:,} steps, with {counts['num_preemptions']} preemptions."
        )
    return lines


def _table(record: dict) -> list[str]:
    lines = [
        "| engine | setting | tok/s | s | ours over it | each setting once, tok/s |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name, engine in record["engines"].items():
        if engine["error"]:
            lines.append(f"| {name} | - | - | - | - | {engine['error'].replace('|', '/')} |")
            continue
        times = f"{engine['median_s']:.2f} ({engine['least_s']:.2f}-{engine['most_s']:.2f})"
        tries = ", ".join(f"{setting or 'default'}: {speed:,.0f}" for setting, speed in engine["tries"].items())
        cells = [name, engine["setting"] or "default", f"{engine['tok_per_s']:,.0f}", times]
        cells.append("-" if name == "ours" else f"{engine['over_ours']:.2f}")
        lines.append("| " + " | ".join([*cells, tries]) + " |")
    return lines


def decoding_table(records: list[dict]) -> str:
    """Decoding of large models on a GPU; empty without any."""
    if not records:
        return ""
    head = ["model", "samples", "context", "engine", "first token s", "tok/s", "ms a step", "floor ms", "% of it"]
    head.append("outside the GPU")
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---:|---|" + "---:|" * 6]
    for r in records:
        cells = [r["model"], f"{r['num_samples']}", f"{r['context']:,}", r["engine"]]
        if error := r.get("error"):
            cells += [error, *"-----"]
        else:
            steps = f"{1e3 * r['step_s']:.2f} ({1e3 * r['least_step_s']:.2f}-{1e3 * r['most_step_s']:.2f})"
            cells += [f"{r['first_s']:.2f}", f"{r['tok_per_s']:,.0f}", steps]
            cells += [f"{1e3 * r['floor_s']:.2f}", f"{r['of_floor']:.0%}"]
            cells.append("-" if r["outside"] is None else f"{r['outside']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(["", "", "### decoding, bfloat16, 8 samples of each context", "", *lines])
