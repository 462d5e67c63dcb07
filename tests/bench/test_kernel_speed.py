"""What is compared computes the same; records and tables say what was measured."""

from __future__ import annotations

import inspect
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import kernel_cases, kernel_speed
from bench.kernel_cases import MAKERS, SHAPES, Case, liger_cross_entropy, liger_grpo
from bench.kernel_speed import NOTES, CpuMeter, GpuMeter, difference, floor, label, measure, run_kernel_speed, tables
from bench.main import main

# torch.compile, of torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")

FP32 = torch.float32
HEAD = {"D": 8, "V": (1 << 18) + 3, "dtype": FP32}  # beyond what linear_sample and linear_logprob leave to torch
TINY = {
    "sample": [{"B": 3, "V": 300, "dtype": FP32}, {"B": 3, "V": 300, "dtype": FP32, "top_k": 20, "top_p": 0.8}],
    "linear_sample": [{"B": 17} | HEAD],
    "linear_logprob": [{"T": 9, "backward": backward} | HEAD for backward in (False, True)],
    "grpo_loss": [{"T": 500}],
    "linear_grpo_loss": [{"S": 3, "L": 3} | HEAD],
    "paged_attention": [{"G": 2, "n": 3, "prefix": 16, "own": 8, "H": 4, "K": 2, "C": 16, "P": 8, "dtype": FP32}],
    "tree_attention": [{"pairs": 1, "n": 2, "shorten": 40.0, "H": 4, "K": 2, "C": 16, "dtype": FP32}],
    "rms_norm": [{"T": 3, "D": 16, "dtype": FP32}],
    "add_rms_norm": [{"T": 3, "D": 16, "dtype": FP32}],
    "swiglu": [{"T": 3, "F": 8, "dtype": FP32}],
    "norm_rotary": [{"T": 3, "H": 4, "K": 2, "C": 8, "dtype": FP32}],
    "write_pages": [{"T": 5, "K": 2, "C": 8, "P": 4, "dtype": FP32}],
}
CASES = [(name, shape) for name, shapes in TINY.items() for shape in shapes]
CEILINGS = {"copy_bytes_per_s": 2e12, "bf16_flops_per_s": 5e14}
SETTING = {"machine": {"device": "1 x some GPU"}, "repeats": 3, "ceilings": CEILINGS}


def traced(form):
    """Compiled as far as a machine without a compiler can: one graph, no fallback to eager."""
    return torch.compile(form, dynamic=False, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(("name", "shape"), CASES, ids=lambda x: label(x) if isinstance(x, dict) else x)
def test_every_form_computes_what_ours_does(name, shape, monkeypatch):
    monkeypatch.setattr(kernel_cases, "_in_torch", lambda _, form: {"torch": form, "torch.compile": traced(form)})
    case = MAKERS[name]("cpu", **shape)
    ours = case.forms["ours"]()
    assert next(iter(case.forms)) == "ours" and "torch" in case.forms
    assert "torch.compile" in case.forms or name == "tree_attention"  # whose compiled form is flex_attention, on a GPU
    for form in case.forms.values():
        outputs = form()
        assert outputs.keys() == ours.keys()
        assert difference(ours, outputs) < 2e-4  # torch's log_softmax of so many tokens: 6e-5 from float64
        assert difference(ours, {k: x * 1.001 for k, x in outputs.items()}) > 5e-4
        if "token" in outputs:
            logits_BV = case.inputs.get("logits")
            logits_BV = F.linear(case.inputs["hidden"], case.inputs["weight"]) if logits_BV is None else logits_BV
            logprob_BV = logits_BV.double().log_softmax(-1)
            logprob_B = logprob_BV.gather(-1, outputs["token"][:, None])[:, 0]
            torch.testing.assert_close(outputs["token_logprob"].double(), logprob_B, atol=1e-4, rtol=0)


def test_the_torch_form_draws_from_the_softmax():
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    torch.manual_seed(0)
    token_B = kernel_cases.sample_torch(logits_V.expand(20_000, -1))["token"]
    share_V = token_B.bincount(minlength=5) / len(token_B)
    assert (share_V - logits_V.softmax(-1)).abs().max() < 0.015


def test_the_filtered_torch_form_draws_from_what_the_filters_keep():
    # Of top_k = 3, renormalised: 0.53, 0.30, 0.17; the first two reach 0.8.
    logits_V = torch.tensor([0.1, 0.35, 0.05, 0.2, 0.3]).log()
    torch.manual_seed(0)
    token_B = kernel_cases.filtered_sample_torch(logits_V.expand(20_000, -1), top_k=3, top_p=0.7)["token"]
    share_V = token_B.bincount(minlength=5) / len(token_B)
    torch.testing.assert_close(share_V, torch.tensor([0, 0.35, 0, 0, 0.3]) / 0.65, atol=0.015, rtol=0)
    token_B = kernel_cases.filtered_sample_torch(logits_V.expand(20_000, -1), top_k=3, top_p=0.8)["token"]
    assert set(token_B.tolist()) == {1, 3, 4}


def test_liger_is_asked_for_the_same_loss(monkeypatch):
    """Stand-ins with the signatures and the meaning of Liger-Kernel 0.8."""

    class CrossEntropy:
        def __init__(self, *, reduction, accum_dtype):
            self.reduction = reduction

        def __call__(self, lin_weight, _input, target, bias=None):
            return F.cross_entropy(_input @ lin_weight.T, target, reduction=self.reduction)

    class Grpo:
        def __init__(self, *, beta, epsilon_low, epsilon_high, loss_type):
            assert loss_type == "bnpo"
            self.beta, self.low, self.high = beta, 1 - epsilon_low, 1 + epsilon_high

        def __call__(
            self, _input, lin_weight, selected_token_ids, attention_mask, advantages, *,
            ref_per_token_logps, old_per_token_logps,
        ):  # fmt: skip
            logprob = (_input @ lin_weight.T).log_softmax(-1).gather(-1, selected_token_ids[..., None])[..., 0]
            ratio, u = (logprob - old_per_token_logps).exp(), ref_per_token_logps - logprob
            whole, clipped = (r * advantages[:, None] for r in (ratio, ratio.clamp(self.low, self.high)))
            loss = -torch.minimum(whole, clipped) + self.beta * (u.exp() - u - 1)
            return (loss * attention_mask).sum() / attention_mask.sum(), ()

    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "liger_kernel.transformers", SimpleNamespace(LigerFusedLinearCrossEntropyLoss=CrossEntropy)
    )
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", SimpleNamespace(LigerFusedLinearGRPOLoss=Grpo))
    shape = {"D": 8, "V": 40, "dtype": FP32}
    case = MAKERS["linear_logprob"]("cpu", T=7, backward=True, **shape)
    form = liger_cross_entropy(*(case.inputs[name] for name in ("hidden", "weight", "token")), backward=True)
    assert len(form()) == 3
    assert difference(case.forms["ours"](), form()) < 1e-6

    case = MAKERS["linear_grpo_loss"]("cpu", S=8, L=64, **shape)
    form = liger_grpo(*(case.inputs[x] for x in ("hidden", "weight", "token", "advantage", "reference", "old")))
    assert form().keys() == {"loss", "d_hidden", "d_weight"}
    assert difference(case.forms["ours"](), form()) < 1e-5


def test_without_liger_its_form_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
    x = torch.zeros(2, 2)
    assert liger_cross_entropy(x, x, x, True) is None and liger_grpo(x, x, x, x, x, x) is None


def test_bytes_and_flops_are_those_counted_by_hand():
    def counts(name, shape):
        case = MAKERS[name]("cpu", **shape)
        return case.num_bytes, case.num_flops

    assert counts("sample", {"B": 2, "V": 100, "dtype": torch.bfloat16}) == (400, 0)
    assert counts("linear_sample", {"B": 2, "D": 4, "V": 10, "dtype": FP32}) == (4 * 48, 160)
    head = {"T": 3, "D": 4, "V": 10, "dtype": FP32}
    assert counts("linear_logprob", head | {"backward": False}) == (4 * 52, 240)
    assert counts("linear_logprob", head | {"backward": True}) == (8 * 52, 960)
    # Read 4 floats and a bool, write 3 and a bool; then read 2 and write 1.
    assert counts("grpo_loss", {"T": 10}) == (420, 0)
    # 2 prefixes of 16 tokens and 6 rows of 8, keys and values of 2 heads of 16; q and the result.
    shape = TINY["paged_attention"][0]
    assert counts("paged_attention", shape) == (80 * 64 * 4 + 2 * 6 * 64 * 4, 4 * 6 * 4 * 16 * 24)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_kernel_has_shapes_that_its_case_takes(device):
    assert SHAPES[device].keys() == MAKERS.keys() == NOTES.keys()
    for name, shapes in SHAPES[device].items():
        assert len({label(shape) for shape in shapes}) == len(shapes) > 0
        for shape in shapes:
            inspect.signature(MAKERS[name]).bind(device, **shape)


def test_peak_memory_is_that_counted_by_hand():
    def form():
        a = torch.ones(1000)  # 4,000 bytes live
        b = torch.cat([a, a])  # 12,000
        del a  # 8,000
        c = b.exp()  # 16,000, the peak
        del b
        return {"c": c[:10].clone()}  # 8,040

    assert CpuMeter().peak_bytes(form) == CpuMeter().peak_bytes(form) == 16_000
    x = torch.ones(1000)
    assert CpuMeter().peak_bytes(lambda: {"x": x.exp_()}) == 0
    w = torch.ones(1000, requires_grad=True)
    # In backward: what exp saved, the gradient spread over its elements (a view), and their product.
    assert CpuMeter().peak_bytes(lambda: torch.autograd.grad(w.exp().sum(), w)) == pytest.approx(8000, abs=16)


class FakeMeter:
    """Milliseconds as told, turn by turn."""

    def __init__(self, case, ms, kernels_ms=None):
        self.ms = {case.forms[name]: list(values) for name, values in ms.items()}
        self.seen_ms = kernels_ms
        self.order = []

    def time_ms(self, form):
        self.order.append(form)
        return self.ms[form].pop(0)

    def kernels_ms(self, form):
        return self.seen_ms

    def peak_bytes(self, form):
        return 3 << 20


def case_of(num_bytes=2_000_000_000, num_flops=0, **forms):
    def constant(x):
        return lambda: {"x": torch.tensor(x)}

    made = {name: constant(x) if isinstance(x, float) else x for name, x in forms.items()}
    return Case({}, made, num_bytes, num_flops)


def test_a_record_holds_medians_ratios_of_turns_and_the_share_of_the_floor():
    case = case_of(ours=1.0, torch=1.01)
    meter = FakeMeter(case, {"ours": [2, 4, 2.5], "torch": [6, 4, 10]}, kernels_ms=1.25)
    record = measure(case, meter, 3, CEILINGS)
    assert meter.order == [case.forms[name] for name in ("torch", "ours", "ours", "torch", "torch", "ours")]
    assert (record["floor_ms"], record["bound"]) == (1.0, "bytes")
    ours, theirs = record["forms"]["ours"], record["forms"]["torch"]
    assert (ours["median_ms"], ours["least_ms"], ours["most_ms"], ours["of_floor"]) == (2.5, 2, 4, 0.8)
    assert (theirs["median_ms"], theirs["over_ours"]) == (6, 3)  # of 3, 1 and 4
    assert theirs["difference"] == pytest.approx(0.01)
    assert ours["peak_extra_bytes"] == 3 << 20


def test_the_floor_is_the_longer_of_bytes_and_flops():
    assert floor(case_of(num_bytes=4_000_000_000, num_flops=500_000_000_000), CEILINGS) == (2.0, "bytes")
    assert floor(case_of(num_bytes=4_000_000_000, num_flops=5_000_000_000_000), CEILINGS) == (10.0, "flops")
    assert floor(case_of(), None) == (None, None)
    case = case_of(ours=1.0)
    record = measure(case, FakeMeter(case, {"ours": [4]}), 1, CEILINGS)
    assert record["forms"]["ours"]["of_floor"] == 0.25  # no time in kernels was seen: that of the whole
    record = measure(case, FakeMeter(case, {"ours": [4]}), 1, None)
    assert record["forms"]["ours"]["of_floor"] is None


def test_a_form_that_fails_is_told_and_costs_the_others_nothing():
    def greedy():
        raise torch.OutOfMemoryError("tried to allocate")

    def broken():
        raise RuntimeError("no\nkernel image")

    case = case_of(ours=1.0, torch=greedy, compiled=broken, wrong=1.5, nan=math.nan, Liger=None)
    record = measure(case, FakeMeter(case, {"ours": [2]}, 2.0), 1, CEILINGS)
    errors = {name: form["error"] for name, form in record["forms"].items()}
    assert errors == {
        "ours": None,
        "torch": "out of memory",
        "compiled": "RuntimeError: no kernel image",
        "wrong": "ArithmeticError: differs from ours by 50%",
        "nan": "ArithmeticError: differs from ours by nan%",
    }
    text = tables([{"kernel": "sample", "shape": "B 1"} | record], SETTING)
    row = next(line for line in text.splitlines() if line.startswith("| B 1"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["B 1", "2 (2-2)", "3", "2", "1 (bytes)", "50%"]
    assert cells[6:9] == ["out of memory", "-", "-"]
    assert cells[9:] == ["failed", "-", "-"] * 3 + ["-"] * 3
    assert "- compiled, B 1: RuntimeError: no kernel image" in text
    assert "copy 2.00 TB/s" in text and "500 TFLOP/s" in text


def test_a_table_names_every_column_of_its_rows():
    case = case_of(ours=1.0, flat=1.0)
    records = [
        {"kernel": "sample", "shape": f"B {i}"}
        | measure(case, FakeMeter(case, {"ours": [1234.5], "flat": [2469.0]}), 1, ceilings)
        for i, ceilings in enumerate([CEILINGS, None])
    ]
    for record in records:
        lines = [line for line in tables([record], SETTING).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert "| 2,469 (2,469-2,469) | 2 | 3 |" in lines[2]


def test_a_difference_is_relative_to_the_norm_of_ours():
    ours = {"x": torch.tensor([3.0, 4.0]), "y": torch.tensor([True, False]), "token": torch.tensor([1])}
    assert difference(ours, ours) == 0
    assert difference(ours, {"x": torch.tensor([3.0, 4.5])}) == pytest.approx(0.1)
    assert difference(ours, {"y": torch.tensor([True, True])}) == 1
    assert difference(ours, {"token": torch.tensor([7]), "else": torch.ones(3)}) == 0
    assert difference(ours, {"x_sum": torch.tensor(7.7)}) == pytest.approx(0.1)
    assert math.isnan(difference(ours, {"x": torch.tensor([math.nan, 4.0]), "y": torch.tensor([True, False])}))


def test_a_label_says_the_shape():
    shape = {"T": 4096, "dtype": torch.bfloat16, "top_p": 0.95, "backward": True}
    assert label(shape) == "T 4,096, bfloat16, top_p 0.95, forward and backward"
    assert label({"backward": False}) == "forward"


def test_the_benchmark_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "cpu", TINY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["kernels", "--only", "grpo_loss,sample", "--repeats", "2", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "kernels.md").read_text()
    assert text in capsys.readouterr().out
    assert text.index("### grpo_loss") < text.index("### sample") and "### linear" not in text
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["repeats"] == 2 and found["warm_up_runs"] == 2 and found["ceilings"] is None
    assert found["machine"]["torch"] == torch.__version__
    assert [record["kernel"] for record in found["records"]] == ["grpo_loss", "sample", "sample"]
    for record in found["records"]:
        for form in record["forms"].values():
            assert form["error"] is None and len(form["ms"]) == 2 and form["peak_extra_bytes"] > 0


def test_a_failure_of_ours_is_an_error_after_all_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "cpu", TINY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def refuse(*_, **__):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(kernel_cases, "grpo_loss", refuse)
    assert main(["kernels", "--only", "grpo_loss,sample", "--repeats", "1", "--out", str(tmp_path)]) == 1
    assert "error: ours failed: grpo_loss (T 500)\n" in capsys.readouterr().err
    assert "illegal memory access" in (tmp_path / "kernels.md").read_text()
    assert len(json.loads((tmp_path / "kernels.json").read_text())["records"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "sample,attention"],
            "--only attention: must be of sample, linear_sample, linear_logprob, grpo_loss, linear_grpo_loss, "
            "paged_attention, tree_attention, rms_norm, add_rms_norm, swiglu, norm_rotary, write_pages",
        ),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(arguments, message, capsys):
    assert main(["kernels", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_ceilings_are_bytes_and_flops_over_their_times(monkeypatch):
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device: randn(*shape, device="meta"))

    def do_bench(form, **_):
        form()
        return 2.0  # ms

    monkeypatch.setattr(kernel_speed, "triton", SimpleNamespace(testing=SimpleNamespace(do_bench=do_bench)))
    ceilings = GpuMeter().ceilings()
    # 1 GiB read and 1 GiB written, and 2 · 8192³, in 2 ms.
    assert ceilings == pytest.approx({"copy_bytes_per_s": 2**31 / 2e-3, "bf16_flops_per_s": 2 * 8192**3 / 2e-3})


def test_time_in_kernels_is_that_of_the_device_alone(monkeypatch):
    def event(device, us, is_user_annotation=False):
        return SimpleNamespace(
            device_type=getattr(kernel_speed.DeviceType, device), is_user_annotation=is_user_annotation,
            time_range=SimpleNamespace(elapsed_us=lambda: us),
        )  # fmt: skip

    runs = [
        [event("CPU", 900), event("CUDA", 30), event("CUDA", 12), event("CUDA", 800, is_user_annotation=True)],
        [event("CUDA", 7000)],
        [event("CUDA", 20), event("CUDA", 20)],
        [], [], [],
    ]  # fmt: skip

    class Profile:
        def __init__(self, activities):
            self.seen = runs.pop(0)

        def events(self):
            return self.seen

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(kernel_speed, "profile", Profile)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert GpuMeter().kernels_ms(dict) == 0.042
    assert GpuMeter().kernels_ms(dict) is None


def test_on_a_gpu_torch_is_also_compiled():
    assert kernel_cases._in_torch("cuda", kernel_cases.sample_torch).keys() == {"torch", "torch.compile"}


@pytest.mark.gpu
def test_on_a_gpu_every_kernel_is_measured(monkeypatch):
    bf16 = {"dtype": torch.bfloat16}
    head = {"D": 128, "V": 1000} | bf16
    shapes = {
        "sample": [{"B": 3, "V": 1000} | bf16, {"B": 3, "V": 1000, "top_k": 20, "top_p": 0.8} | bf16],
        "linear_sample": [{"B": 17} | head],
        "linear_logprob": [{"T": 64, "backward": backward} | head for backward in (False, True)],
        "grpo_loss": [{"T": 500}],
        "linear_grpo_loss": [{"S": 4, "L": 16} | head],
        "paged_attention": [{"G": 2, "n": 3, "prefix": 64, "own": 32, "H": 8, "K": 2, "C": 64, "P": 16} | bf16],
        "tree_attention": [{"pairs": 1, "n": 2, "shorten": 16.0, "H": 4, "K": 2, "C": 64} | bf16],
        "rms_norm": [{"T": 3, "D": 64} | bf16],
        "add_rms_norm": [{"T": 3, "D": 64} | bf16],
        "swiglu": [{"T": 3, "F": 64} | bf16],
        "norm_rotary": [{"T": 3, "H": 4, "K": 2, "C": 64} | bf16],
        "write_pages": [{"T": 20, "K": 2, "C": 64, "P": 16} | bf16],
    }
    monkeypatch.setitem(SHAPES, "cuda", shapes)
    ceilings = {"copy_bytes_per_s": 1e12, "bf16_flops_per_s": 1e14}
    monkeypatch.setattr(kernel_speed.GpuMeter, "ceilings", lambda self: ceilings)
    for record in run_kernel_speed([], 1, None):
        for form in record["forms"].values():
            assert form["error"] is None
            assert form["median_ms"] > 0 and (form["kernels_ms"] is None or form["kernels_ms"] > 0)
    # The allocator hands out multiples of 512 bytes.
    assert GpuMeter().peak_bytes(lambda: {"x": torch.ones(1024, device="cuda")}) == 4096
