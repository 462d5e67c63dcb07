"""Time and memory of the kernels, beside plain torch, torch.compile and Liger-Kernel, and beside what a GPU can do.

On a GPU two ceilings are measured first: the bandwidth of a copy and the rate of a bfloat16 matrix product. The bytes
that a case must move over the one, and its flops over the other, are two times; the longer one is its floor. Forms take
turns, so that a noisy machine hits all alike, and each has been run, compared with ours and warmed up before.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from bench.kernel_cases import MAKERS, SHAPES, Case, Form, Outputs
from bench.result_files import write_result
from kernels.jit import triton
from trainer.machine import machine

# Relative to the norm of ours, beyond which a form computes something else. Logits rounded to bfloat16 move the largest
# probabilities by some percent, and a hundredth of the tokens across a clip bound: a tenth of the gradient's norm.
MOST_DIFFERENCE = 0.3
OUT_OF_MEMORY = "out of memory"
NOTES = {
    "sample": "Bytes: the logits, once. On a CPU our filter also takes memory of numpy's, which is not counted.",
    "linear_sample": "Bytes: the weight, once.",
    "linear_logprob": "Flops: 2·T·V·D forward, 8·T·V·D with backward, as executed: ours computes the logits twice. "
    "Liger computes Σ log p alone.",
    "grpo_loss": "Forward and backward. Bytes: inputs and outputs once, and ∂loss/∂logprob between the passes.",
    "linear_grpo_loss": "Forward and backward from hidden states to the loss: linear_logprob, then grpo_loss. "
    "Flops: 8·T·V·D as executed, T = S·L.",
    "paged_attention": "One decode step of G groups of n rows. Ours reads a group's prefix once, flat once per row. "
    "Bytes: as ours.",
    "tree_attention": "Forward and backward over the trees of `pairs` pairs with n judgments of each side "
    "(`bench/step_workload.py`), lengths divided by `shorten`. Flops: 14·H·C of each (query, key) that see each "
    "other, scores twice. torch's is the definition, by a mask [L, L].",
    "rms_norm": "Of T rows. Bytes, in this table and those below: inputs read once, outputs written once.",
    "add_rms_norm": "The sum of two, rounded and kept, and its norm.",
    "swiglu": "Of two halves of one product.",
    "norm_rotary": "Queries and keys of one product: norms of heads, then rotary embedding.",
    "write_pages": "Keys and values of T tokens to pages in any order.",
}


class Meter(Protocol):
    """How a device is measured; times in milliseconds."""

    def time_ms(self, form: Form) -> float: ...

    def kernels_ms(self, form: Form) -> float | None:
        """Spent in kernels, without the gaps between them; None if that cannot be seen."""

    def peak_bytes(self, form: Form) -> int:
        """Most memory at one time beyond what was there before; results count."""


class CpuMeter:
    def time_ms(self, form: Form) -> float:
        start = time.perf_counter()
        form()
        return 1e3 * (time.perf_counter() - start)

    def kernels_ms(self, form: Form) -> float | None:
        return None

    def peak_bytes(self, form: Form) -> int:
        """Of torch's allocator, from its record of every allocation: exact, and the same in every run. Not numpy's."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            outputs = form()
        del outputs
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return peak


def kernel_us(run: Callable[[], object]) -> float | None:
    """Microseconds that kernels and copies of one stream take on a GPU; None if none are seen."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    events = [e for e in record.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(event.time_range.elapsed_us() for event in events) or None


class GpuMeter:
    def time_ms(self, form: Form) -> float:
        """The median by events, the L2 cache flushed before each run."""
        return triton.testing.do_bench(form, return_mode="median")

    def kernels_ms(self, form: Form) -> float | None:
        flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
        times = []
        for _ in range(3):
            flush.zero_()
            times.append(kernel_us(form) or 0)
        return median(times) / 1e3 or None

    def peak_bytes(self, form: Form) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = form()
        torch.cuda.synchronize()
        del outputs
        return torch.cuda.max_memory_allocated() - before

    def ceilings(self) -> dict[str, float]:
        source, target = torch.randn(2, 1 << 28, device="cuda")  # 1 GiB each
        copy_ms = triton.testing.do_bench(lambda: target.copy_(source), rep=500, return_mode="median")
        a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
        out = torch.empty_like(a)
        product_ms = triton.testing.do_bench(lambda: torch.mm(a, b, out=out), rep=500, return_mode="median")
        return {
            "copy_bytes_per_s": 2 * source.nbytes / copy_ms * 1e3,
            "bf16_flops_per_s": 2 * 8192**3 / product_ms * 1e3,
        }


def run_kernel_speed(only: list[str], repeats: int, out: Path | None) -> list[dict]:
    """Prints the tables and returns one record per case; writes kernels.json and kernels.md to `out`.

    Args:
        only: names of kernels; none for all.
        repeats: timed turns of each form. A turn is one run on a CPU, a median of some 100 ms of runs on a GPU.

    Raises:
        ValueError: an unknown name, or a form of ours that failed (after everything is written).
    """
    for name in only:
        if name not in MAKERS:
            raise ValueError(f"--only {name}: must be of {', '.join(MAKERS)}")
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    meter = GpuMeter() if device == "cuda" else CpuMeter()
    setting = {"machine": machine(), "repeats": repeats, "warm_up_runs": 2}
    setting["ceilings"] = ceilings = meter.ceilings() if device == "cuda" else None
    cases = [(name, shape) for name in only or MAKERS for shape in SHAPES[device][name]]
    records: list[dict] = []
    for name, shape in tqdm(cases, desc="kernels"):
        case = MAKERS[name](device, **shape)
        records.append({"kernel": name, "shape": label(shape)} | measure(case, meter, repeats, ceilings))
        del case
        if out is not None:  # what is known so far: a later case may not come back
            write_result(out, "kernels", tables(records, setting), setting | {"records": records})
    print(tables(records, setting))
    if failed := [r for r in records for name, form in r["forms"].items() if name.startswith("ours") and form["error"]]:
        raise ValueError("ours failed: " + ", ".join(f"{record['kernel']} ({record['shape']})" for record in failed))
    return records


def measure(case: Case, meter: Meter, repeats: int, ceilings: dict[str, float] | None) -> dict:
    """Times, memory and floor of one case. A form that fails, or that differs from ours, has its error instead."""
    forms = {
        name: {"error": None, "difference": None, "peak_extra_bytes": None, "kernels_ms": None, "ms": []}
        for name, form in case.forms.items()
        if form is not None
    }
    ours: Outputs = {}

    def prepare(name: str, form: Form) -> None:
        outputs = form()
        ours.update({} if ours else outputs)
        forms[name]["difference"] = difference(ours, outputs)
        del outputs
        if not forms[name]["difference"] <= MOST_DIFFERENCE:
            raise ArithmeticError(f"differs from ours by {forms[name]['difference']:.0%}")
        forms[name]["peak_extra_bytes"] = meter.peak_bytes(form)
        forms[name]["kernels_ms"] = meter.kernels_ms(form)

    for name in forms:
        forms[name]["error"] = _error_of(lambda name=name: prepare(name, case.forms[name]))
    ours.clear()
    for turn in range(repeats):
        for name in list(forms)[:: 1 if turn % 2 else -1]:
            if forms[name]["error"] is None:
                forms[name]["error"] = _error_of(
                    lambda name=name: forms[name]["ms"].append(meter.time_ms(case.forms[name]))
                )
    floor_ms, bound = floor(case, ceilings)
    for form in forms.values():
        if form["error"] is None:
            form |= {"median_ms": median(form["ms"]), "least_ms": min(form["ms"]), "most_ms": max(form["ms"])}
            form["of_floor"] = floor_ms and floor_ms / (form["kernels_ms"] or form["median_ms"])
            if forms["ours"]["error"] is None:
                form["over_ours"] = median(x / y for x, y in zip(form["ms"], forms["ours"]["ms"], strict=True))
    missing = {name: None for name, form in case.forms.items() if form is None}
    counts = {"num_bytes": case.num_bytes, "num_flops": case.num_flops}
    return counts | {"floor_ms": floor_ms, "bound": bound, "forms": forms, "missing": list(missing)}


def difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest ‖theirs - ours‖ / ‖ours‖ of the outputs that both have; nan if there is one."""
    found = [0.0]
    for name, x in theirs.items():
        y = ours[name.removesuffix("_sum")].float().sum() if name.endswith("_sum") else ours.get(name)
        if y is not None and not name.startswith("token"):
            distance = torch.linalg.vector_norm(x.float() - y.float()).item()
            found.append(distance / (torch.linalg.vector_norm(y.float()).item() or 1.0) if distance else 0.0)
    return math.nan if any(map(math.isnan, found)) else max(found)


def floor(case: Case, ceilings: dict[str, float] | None) -> tuple[float | None, str | None]:
    """(milliseconds, what they are spent on) of a case at the ceilings."""
    if ceilings is None:
        return None, None
    of_bytes = 1e3 * case.num_bytes / ceilings["copy_bytes_per_s"]
    of_flops = 1e3 * case.num_flops / ceilings["bf16_flops_per_s"]
    return max((of_bytes, "bytes"), (of_flops, "flops"))


def _error_of(action: Callable[[], None]) -> str | None:
    """What went wrong, in one line: one form that fails must not cost the others their numbers."""
    error = None
    try:
        action()
    except torch.OutOfMemoryError:
        error = OUT_OF_MEMORY
    except Exception as raised:
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"
    if error is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return error


def label(shape: dict) -> str:
    """B 64, V 151,936, bfloat16"""
    words = []
    for name, value in shape.items():
        if isinstance(value, bool):
            words.append(f"forward and {name}" if value else "forward")
        elif isinstance(value, torch.dtype):
            words.append(str(value).removeprefix("torch."))
        else:
            words.append(f"{name} {value:,}")
    return ", ".join(words)


def tables(records: list[dict], setting: dict) -> str:
    """One Markdown table per kernel."""
    lines = [
        f"{setting['machine']['device']}; {setting['repeats']} turns. Milliseconds: median (least-most); × ours: "
        "median of the turns' ratios, above 1 where ours is faster; MiB: most memory beyond the inputs, results too.",
    ]
    if ceilings := setting["ceilings"]:
        lines.append(
            f"Ceilings measured here: copy {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written), bfloat16 "
            f"product of 8192³ {ceilings['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s. Floor: the longer of bytes and flops "
            "at these; % of it: by the time in kernels, or by that of the whole where the profiler sees none."
        )
    for kernel in dict.fromkeys(record["kernel"] for record in records):
        lines += ["", f"### {kernel}", "", NOTES[kernel], "", *_table([r for r in records if r["kernel"] == kernel])]
    return "\n".join(lines)


def _table(records: list[dict]) -> list[str]:
    has_floor = records[0]["floor_ms"] is not None
    names = list(dict.fromkeys(name for record in records for name in [*record["forms"], *record["missing"]]))
    head = ["shape"]
    for name in names:
        head += [f"{name}: ms", *([] if name == "ours" else ["× ours"]), "MiB"]
        head += ["kernels ms", "floor ms", "% of it"] if name == "ours" and has_floor else []
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    errors = []
    for record in records:
        cells = [record["shape"]]
        for name in names:
            form = record["forms"].get(name)
            cells += _cells(form, name == "ours", record if has_floor else None)
            if form and form["error"] not in (None, OUT_OF_MEMORY):
                errors.append(f"- {name}, {record['shape']}: {form['error']}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines + ([""] if errors else []) + errors


def _cells(form: dict | None, is_ours: bool, record: dict | None) -> list[str]:
    """The cells of one form, as the head of `_table` names them."""
    num_empty = 1 + (not is_ours) + (3 if is_ours and record else 0)
    if form is None:
        return ["-"] * (1 + num_empty)
    if form["error"]:
        return [form["error"] if form["error"] == OUT_OF_MEMORY else "failed"] + ["-"] * num_empty
    cells = [f"{_digits(form['median_ms'])} ({_digits(form['least_ms'])}-{_digits(form['most_ms'])})"]
    if not is_ours:
        cells.append(_digits(form.get("over_ours")))
    cells.append(_digits(form["peak_extra_bytes"] / 2**20))
    if is_ours and record:
        floor_cell = f"{_digits(record['floor_ms'])} ({record['bound']})"
        cells += [_digits(form["kernels_ms"]), floor_cell, f"{form['of_floor']:.0%}"]
    return cells


def _digits(x: float | None) -> str:
    """Three digits that count."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
