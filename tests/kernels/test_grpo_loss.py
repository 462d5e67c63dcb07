"""The token loss against its formula in Python floats, against the definition and against float64, in every form.

T tokens   V vocabulary
"""

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import kernels.grpo_loss as module
from kernels.grpo_loss import MAX_LOG_RATIO, grpo_loss, grpo_loss_ref

INPUTS = ("logprob_T", "old_logprob_T", "advantage_T")
OPTIONAL = ("reference_logprob_T", "importance_weight_T", "entropy_T")
CLIP = {"clip_low": 0.2, "clip_high": 0.28}

# numpy's, of the interpreter, where hostile inputs are meant to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@dataclass
class Found:
    """Outputs and the gradients of Σ upstream · loss, on the CPU."""

    loss_T: torch.Tensor
    is_clipped_T: torch.Tensor
    kl_T: torch.Tensor
    d_logprob_T: torch.Tensor
    d_entropy_T: torch.Tensor | None

    def __iter__(self):
        return iter((self.loss_T, self.is_clipped_T, self.kl_T, self.d_logprob_T, self.d_entropy_T))


def run(function, upstream=None, **arguments) -> Found:
    arguments = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    trained = [arguments[name].requires_grad_() for name in ("logprob_T", "entropy_T") if name in arguments]
    result = function(**arguments)
    upstream = torch.ones_like(result.loss_T) if upstream is None else upstream.to(result.loss_T)
    gradients = torch.autograd.grad(result.loss_T, trained, upstream, allow_unused=True)
    outputs = (result.loss_T.detach(), result.is_clipped_T, result.kl_T, gradients[0], (*gradients, None)[1])
    return Found(*(None if x is None else x.cpu() for x in outputs))


@pytest.fixture
def in_triton(triton_device, monkeypatch):
    """`grpo_loss` by the kernel: on a GPU as it is, on the CPU in the place of the torch form."""
    monkeypatch.setattr(module, "_grpo_loss_torch", module._grpo_loss_triton)

    def in_triton(**arguments):
        return grpo_loss(**{k: x.to(triton_device) if isinstance(x, torch.Tensor) else x for k, x in arguments.items()})

    return in_triton


@pytest.fixture(params=["torch", "triton"])
def form(request):
    return grpo_loss if request.param == "torch" else request.getfixturevalue("in_triton")


def problem(T, dtype=torch.float64, seed=0, **options):
    """Log-probs that lie apart by about the clip range, some far; every input given."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return torch.randn(T, generator=generator, dtype=torch.float64) * scale

    logprob_T = -normal(3).abs()
    tensors = {
        "logprob_T": logprob_T,
        "old_logprob_T": logprob_T + normal(0.4),
        "advantage_T": normal(1).where(normal(1) > -1, 0.0),
        "reference_logprob_T": logprob_T + normal(0.4),
        "importance_weight_T": normal(1).abs().clamp(max=2),
        "entropy_T": normal(2).abs(),
    }
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    tensors["mask_T"] = normal(1) > -0.7
    return tensors | CLIP | {"dual_clip": 1.5, "kl_coef": 0.3, "entropy_coef": 0.2, "num_tokens": 7.0} | options


def doubled(arguments):
    return {k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in arguments.items()}


def assert_same(found, right, rtol):
    """Masks equal, numbers within rtol of each output's largest finite one, or of 1 (k3 is a difference of ones)."""
    for x, y in zip(found, right, strict=True):
        assert (x is None) == (y is None)
        if x is None:
            continue
        assert x.shape == y.shape
        if x.dtype == torch.bool:
            assert torch.equal(x, y)
        elif len(x):
            largest = max(1.0, *y[y.isfinite()].abs().tolist())
            torch.testing.assert_close(x.double(), y.double(), rtol=rtol, atol=rtol * largest, equal_nan=True)


def rms(x):
    return x.double().square().mean().sqrt()


# One token in Python floats

logprobs = st.floats(-12, 0)
values = st.floats(1e-300, 3) | st.floats(-3, -1e-300) | st.just(0.0)
clips = st.floats(0, 0.9)
coefficients = st.just(0.0) | st.floats(1e-4, 1)
options = st.fixed_dictionaries(
    {"clip_low": clips, "clip_high": clips | st.just(math.inf), "dual_clip": st.none() | st.floats(1.01, 5)}
    | {"kl_coef": coefficients, "kl_estimator": st.sampled_from(["k1", "k2", "k3"]), "entropy_coef": coefficients}
    | {"num_tokens": st.floats(0.5, 100)}
)
tokens = st.fixed_dictionaries(
    dict.fromkeys(("logprob_T", "old_logprob_T", "reference_logprob_T"), logprobs)
    | {"advantage_T": values, "importance_weight_T": st.floats(0, 3), "entropy_T": st.floats(0, 5)}
    | {"mask_T": st.booleans()}
)


def by_formula(token, clip_low, clip_high, dual_clip, kl_coef, kl_estimator, entropy_coef, num_tokens):
    """(loss, is clipped, kl, ∂loss/∂logprob, ∂loss/∂entropy) of one token."""
    if not token["mask_T"]:
        return 0.0, False, 0.0, 0.0, 0.0
    A, w = token["advantage_T"], token["importance_weight_T"]
    ratio = math.exp(token["logprob_T"] - token["old_logprob_T"])
    surrogate = min(ratio * A, max(1 - clip_low, min(1 + clip_high, ratio)) * A)
    if dual_clip and A < 0:
        surrogate = max(surrogate, dual_clip * A)
    is_clipped = surrogate != ratio * A
    u = token["reference_logprob_T"] - token["logprob_T"]
    kl = {"k1": -u, "k2": u * u / 2, "k3": math.exp(u) - u - 1}[kl_estimator]
    kl_slope = {"k1": 1, "k2": -u, "k3": 1 - math.exp(u)}[kl_estimator]
    loss = -w * surrogate + kl_coef * kl - entropy_coef * token["entropy_T"]
    slope = (0 if is_clipped else -w * A * ratio) + kl_coef * kl_slope
    return loss / num_tokens, is_clipped, kl, slope / num_tokens, -entropy_coef / num_tokens


def tensors_of(some):
    columns = {name: [token[name] for token in some] for name in some[0]}
    return {k: torch.tensor(x, dtype=torch.bool if k == "mask_T" else torch.float64) for k, x in columns.items()}


def is_on_a_bound(token, options, slack):
    ratio = math.exp(token["logprob_T"] - token["old_logprob_T"])
    bounds = (1 - options["clip_low"], 1 + options["clip_high"], options["dual_clip"] or math.inf)
    return min(abs(ratio - bound) for bound in bounds) < slack


def token(logprob, advantage, **changes):
    return {
        "logprob_T": logprob, "old_logprob_T": 0.0, "reference_logprob_T": -1.0, "advantage_T": advantage,
        "importance_weight_T": 1.0, "entropy_T": 1.0, "mask_T": True,
    } | changes  # fmt: skip


PLAIN = {
    "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "kl_coef": 0.0, "kl_estimator": "k3", "entropy_coef": 0.0,
    "num_tokens": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("function", [grpo_loss_ref, grpo_loss])
@given(st.lists(tokens, min_size=1, max_size=6), options)
@example([token(math.log(1.5), 1.0)], PLAIN)  # clipped above
@example([token(math.log(1.5), -1.0)], PLAIN)  # too likely and bad: never clipped
@example([token(math.log(1.5), -1.0)], PLAIN | {"dual_clip": 1.4})  # or by the second bound alone
@example([token(math.log(0.5), -1.0)], PLAIN)  # clipped below
@example([token(math.log(0.5), 1.0)], PLAIN)  # too unlikely and good: never clipped
@example([token(math.log(1.5), 0.0), token(math.log(0.5), 0.0)], PLAIN)  # nothing to clip
def test_value_and_gradient_are_those_of_the_formula(function, some, options):
    found = run(function, **tensors_of(some), **options)
    right = zip(*(by_formula(token, **options) for token in some), strict=True)
    for output, numbers in zip(found, right, strict=True):
        if output is None:
            assert not any(numbers)
        elif output.dtype == torch.bool:
            for ours, theirs, token in zip(output.tolist(), numbers, some, strict=True):
                # A product of a tiny advantage rounds to that of the bound.
                assert ours == theirs or is_on_a_bound(token, options, 1e-9) or abs(token["advantage_T"]) < 1e-290
        else:
            for ours, theirs, token in zip(output.tolist(), numbers, some, strict=True):
                is_sharp = not is_on_a_bound(token, options, 1e-9) or output is not found.d_logprob_T
                assert not is_sharp or ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@given(st.lists(tokens, min_size=1, max_size=6), options, st.sets(st.sampled_from([*OPTIONAL, "mask_T"])))
def test_is_the_definition_whatever_is_given(some, options, left_out):
    arguments = {name: x for name, x in tensors_of(some).items() if name not in left_out} | options
    arguments |= {"kl_coef": 0.0} if "reference_logprob_T" in left_out else {}
    arguments |= {"entropy_coef": 0.0} if "entropy_T" in left_out else {}
    upstream_T = torch.linspace(-1, 2, len(some), dtype=torch.float64)
    assert_same(run(grpo_loss, upstream_T, **arguments), run(grpo_loss_ref, upstream_T, **arguments), 1e-13)


@settings(max_examples=50)
@given(st.lists(tokens, min_size=1, max_size=4), options)
def test_gradients_are_those_of_finite_differences(some, options):
    assume(not any(is_on_a_bound(token, options, 1e-3) for token in some))
    arguments = tensors_of(some)
    trained = [arguments.pop(name).requires_grad_() for name in ("logprob_T", "entropy_T")]

    def loss_T(logprob_T, entropy_T):
        return grpo_loss(logprob_T=logprob_T, entropy_T=entropy_T, **arguments, **options).loss_T

    assert torch.autograd.gradcheck(loss_T, trained, atol=1e-4)


# Every form against the definition


# 1: one token; 512: a whole program; 1300: three programs, the last one ragged.
@pytest.mark.parametrize("T", [1, 512, 1300])
@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_torch(T, kl_estimator, dtype, form):
    arguments = problem(T, dtype, kl_estimator=kl_estimator)
    upstream_T = torch.linspace(-1, 2, T)
    right = run(grpo_loss_ref, upstream_T, **doubled(arguments))
    theirs = run(grpo_loss_ref, upstream_T, **arguments)
    ours = run(form, upstream_T, **arguments)
    assert torch.equal(ours.is_clipped_T, right.is_clipped_T)
    for our, their, x in zip(ours, theirs, right, strict=True):
        assert our.dtype == their.dtype
        if our.dtype == torch.bool:
            continue
        assert rms(our.double() - x) <= 2 * rms(their.double() - x) + 1e-7 * rms(x)
    assert (ours.loss_T.dtype, ours.d_logprob_T.dtype, ours.d_entropy_T.dtype) == (torch.float32, dtype, dtype)


@pytest.mark.parametrize("left_out", [*([name] for name in (*OPTIONAL, "mask_T", "dual_clip")), [*OPTIONAL, "mask_T"]])
def test_what_is_optional_can_be_left_out(left_out, form):
    arguments = {name: x for name, x in problem(40, torch.float32).items() if name not in left_out}
    arguments |= {"kl_coef": 0.0} if "reference_logprob_T" in left_out else {}
    arguments |= {"entropy_coef": 0.0} if "entropy_T" in left_out else {}
    found = run(form, **arguments)
    assert_same(found, run(grpo_loss_ref, **arguments), 1e-6)
    assert "reference_logprob_T" not in left_out or not found.kl_T.any()


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_a_reference_without_a_coefficient_is_measured_and_not_priced(kl_estimator, form):
    arguments = problem(40, torch.float32, kl_coef=0.0, kl_estimator=kl_estimator)
    arguments["reference_logprob_T"][arguments["mask_T"].nonzero()[0]] = math.nan
    found = run(form, **arguments)
    assert found.kl_T.any() and found.kl_T.isnan().sum() == 1
    arguments.pop("reference_logprob_T")
    without = run(form, **arguments)
    assert torch.equal(found.loss_T, without.loss_T) and torch.equal(found.d_logprob_T, without.d_logprob_T)


def test_k3_and_its_gradient_keep_their_digits_near_zero(form):
    """exp(u) - u - 1 in float32 has an error of about eps, at u = 1e-4 more than its value."""
    reference_T = -1 + torch.cat([sign * torch.logspace(-6, 0, 100) for sign in (1, -1)])
    logprob_T, zero_T = torch.full((200,), -1.0), torch.zeros(200)
    found = run(
        form, logprob_T=logprob_T, old_logprob_T=logprob_T, advantage_T=zero_T, reference_logprob_T=reference_T,
        kl_coef=1.0, **CLIP,
    )  # fmt: skip
    u_T = (reference_T - logprob_T).double()  # exact
    eps = torch.finfo(torch.float32).eps
    assert (found.kl_T >= 0).all()
    assert ((found.kl_T - (u_T.expm1() - u_T)).abs() <= 8 * eps * u_T.abs()).all()
    assert ((found.d_logprob_T + u_T.expm1()).abs() <= 8 * eps * u_T.abs()).all()


def test_k3_near_zero_has_all_terms_of_its_series(in_triton):
    u_T = torch.linspace(-0.2499, 0.2499, 401)
    zero_T = torch.zeros(401)
    kl_T = run(
        in_triton, logprob_T=zero_T, old_logprob_T=zero_T, advantage_T=zero_T, reference_logprob_T=u_T, **CLIP
    ).kl_T  # fmt: skip
    right_T = u_T.double().expm1() - u_T.double()
    assert ((kl_T - right_T).abs() <= 4 * torch.finfo(torch.float32).eps * right_T).all()


HOSTILE = (0.0, -1.0, -1.1, -21.5, -1e4, -3e38)


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_finite_inputs_of_any_size_give_finite_values_and_gradients(kl_estimator, form):
    columns = itertools.product(HOSTILE, HOSTILE, (0.0, 1.0, -1.0, 1e-38, -1e20), (-1.0, -30.0, 3e38))
    columns = zip(*columns, strict=True)
    names = (*INPUTS, "reference_logprob_T")
    arguments = dict(zip(names, (torch.tensor(column) for column in columns), strict=True))
    arguments |= CLIP | {"kl_coef": 0.5, "kl_estimator": kl_estimator}
    found = run(form, **arguments)
    assert all(x.isfinite().all() for x in (found.loss_T, found.kl_T, found.d_logprob_T))
    # One advantage at a time: next to 1e20, an error of 1 would not show.
    right = run(grpo_loss_ref, **doubled(arguments))
    for advantage in arguments["advantage_T"].unique():
        chosen_T = arguments["advantage_T"] == advantage
        for ours, exact in zip(list(found)[:4], list(right)[:4], strict=True):
            if ours.dtype == torch.bool:
                assert torch.equal(ours, exact)
            else:
                torch.testing.assert_close(ours[chosen_T].double(), exact[chosen_T], rtol=1e-5, atol=1e-6)


def test_beyond_twenty_nats_a_log_ratio_is_constant(form):
    """With e²⁰ = 4.85e8; at ±20 itself there still is a gradient."""
    far_T = torch.tensor([20.0, 20.5, 500.0, -20.0, -20.5, -500.0])
    zero_T, top = torch.zeros(6), math.exp(20)
    found = run(form, logprob_T=far_T, old_logprob_T=zero_T, advantage_T=-torch.ones(6), **CLIP)
    assert found.loss_T.tolist() == pytest.approx([top] * 3 + [0.8] * 3, rel=1e-5)
    assert found.d_logprob_T.tolist() == pytest.approx([top, 0, 0, 0, 0, 0], rel=1e-5)
    found = run(form, logprob_T=far_T, old_logprob_T=zero_T, advantage_T=torch.ones(6), **CLIP)
    assert found.loss_T.tolist() == pytest.approx([-1.28] * 3 + [-math.exp(-20)] * 3, rel=1e-5)
    assert found.d_logprob_T.tolist() == pytest.approx([0, 0, 0, -math.exp(-20), 0, 0], rel=1e-5)
    for kl_estimator, kl, slope in (
        ("k1", [20, 20, 20, -20, -20, -20], [1, 0, 0, 1, 0, 0]),
        ("k2", [200] * 6, [20, 0, 0, -20, 0, 0]),
        ("k3", [19] * 3 + [top - 21] * 3, [1, 0, 0, 1 - top, 0, 0]),
    ):
        found = run(
            form, logprob_T=far_T, old_logprob_T=far_T, advantage_T=zero_T, reference_logprob_T=zero_T, kl_coef=1.0,
            kl_estimator=kl_estimator, **CLIP,
        )  # fmt: skip
        assert found.kl_T.tolist() == pytest.approx(kl, rel=1e-5)
        assert found.d_logprob_T.tolist() == pytest.approx(slope, rel=1e-5, abs=1e-6)
    assert MAX_LOG_RATIO == 20


def test_infinite_inputs(form):
    inf, nan = math.inf, math.nan
    rows = [  # logprob, old, advantage, loss, gradient
        (-1.0, -inf, 1.0, -1.28, 0.0),  # clipped
        (-1.0, -inf, -1.0, math.exp(20), 0.0),  # limited
        (-inf, -1.0, 1.0, -math.exp(-20), 0.0),
        (-inf, -1.0, -1.0, 0.8, 0.0),
        (-1.0, -inf, 0.0, 0.0, 0.0),
        (-inf, -inf, 1.0, nan, nan),
        (-inf, -inf, 0.0, nan, nan),
        (-1.0, -1.0, inf, -inf, -inf),
        (-1.0, -1.0, -inf, inf, inf),
    ]
    *inputs, loss_T, slope_T = (torch.tensor(column) for column in zip(*rows, strict=True))
    for function in (grpo_loss_ref, form):
        found = run(function, **dict(zip(INPUTS, inputs, strict=True)), **CLIP)
        torch.testing.assert_close(found.loss_T, loss_T, rtol=1e-5, atol=0, equal_nan=True)
        torch.testing.assert_close(found.d_logprob_T, slope_T, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", [*INPUTS, *OPTIONAL])
def test_nan_is_never_hidden(name, kl_estimator, form):
    # The second and third are clipped above and below, the fourth by the second bound.
    arguments = {
        "logprob_T": torch.tensor([-1.0, -1.0, -3.0, 0.0]), "old_logprob_T": torch.tensor([-1.0, -3.0, -1.0, -3.0]),
        "advantage_T": torch.tensor([1.0, 1.0, -1.0, -1.0]), "reference_logprob_T": torch.full((4,), -1.5),
        "importance_weight_T": torch.ones(4), "entropy_T": torch.ones(4),
    } | CLIP | {"dual_clip": 3.0, "kl_coef": 0.1, "kl_estimator": kl_estimator, "entropy_coef": 0.1}  # fmt: skip
    assert run(form, **arguments).is_clipped_T.tolist() == [False, True, True, True]
    arguments[name] = torch.full((4,), math.nan)
    for function in (grpo_loss_ref, form):
        found = run(function, **arguments)
        assert found.loss_T.isnan().all()
        # The gradient of a clipped token does not depend on the weight, nor that of k1 on the reference.
        first = name != "entropy_T" and (name, kl_estimator) != ("reference_logprob_T", "k1")
        rest = first and name != "importance_weight_T"
        assert found.d_logprob_T.isnan().tolist() == [first, rest, rest, rest]
        assert found.kl_T.isnan().all() == (name in ("logprob_T", "reference_logprob_T"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kl_estimator", ["k1", "k3"])
def test_a_masked_token_is_exactly_zero_whatever_its_inputs(value, kl_estimator, form):
    arguments = problem(40, torch.float32, kl_estimator=kl_estimator)
    mask_T = arguments["mask_T"]
    hostile = {name: arguments[name].where(mask_T, value) for name in (*INPUTS, *OPTIONAL)}
    for function in (grpo_loss_ref, form):
        found = run(function, **arguments | hostile)
        for x, clean in zip(found, run(function, **arguments), strict=True):
            assert torch.equal(x, clean)
            assert not x[~mask_T].any() and x[mask_T].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_of_zero_stays_zero_whatever_that_of_its_loss(value, form):
    arguments = problem(40, torch.float32, kl_coef=0.0)
    is_free_T = arguments["mask_T"] & ~run(form, **arguments).is_clipped_T
    assert not is_free_T[arguments["mask_T"]].all() and is_free_T.any()
    upstream_T = torch.ones(40).where(is_free_T, value)
    for function in (grpo_loss_ref, form):
        found, right = run(function, upstream_T, **arguments), run(function, **arguments)
        assert torch.equal(found.d_logprob_T, right.d_logprob_T)
        assert not found.d_entropy_T[~arguments["mask_T"]].any()


def test_a_function_without_slope_at_the_zero_of_a_masked_token(form):
    """The slope of a square root there is inf, and 0 times inf NaN."""
    for function in (grpo_loss_ref, form):
        arguments = problem(40, torch.float32)
        logprob_T, entropy_T = (arguments[name].requires_grad_() for name in ("logprob_T", "entropy_T"))
        function(**arguments).loss_T.abs().sqrt().sum().backward()
        for gradient_T in (logprob_T.grad, entropy_T.grad):
            assert gradient_T.isfinite().all() and not gradient_T[~arguments["mask_T"]].any()


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "bounds"),
    [
        (0.25, 1.0, lambda bound: {"clip_low": 0.0, "clip_high": bound - 1}),
        (-0.25, -1.0, lambda bound: {"clip_low": 1 - bound, "clip_high": 0.0}),
        (0.5, -1.0, lambda bound: {"clip_low": 0.0, "clip_high": 0.0, "dual_clip": bound}),
    ],
)
def test_on_a_bound_a_ratio_is_not_clipped_and_just_beyond_it_is(log_ratio, advantage, bounds, form):
    """min(ratio A, clip(ratio) A) has a kink there: torch.minimum would give half of the gradient."""
    token = dict(zip(INPUTS, (torch.tensor([x]) for x in (log_ratio - 2, -2.0, advantage)), strict=True))
    for function in (grpo_loss_ref, form):
        # The ratio as this form rounds it; 1 ± (1 ± ratio) is exact from 1/2 to 2.
        ratio = -advantage * run(function, **token, clip_low=0.99, clip_high=math.inf).loss_T.item()
        for bound, is_clipped in ((ratio, False), (torch.tensor(ratio).nextafter(torch.tensor(1.0)).item(), True)):
            found = run(function, **token, **bounds(bound))
            assert found.is_clipped_T.item() == is_clipped
            assert found.d_logprob_T.item() == (0.0 if is_clipped else -advantage * ratio)
            assert found.loss_T.item() == -advantage * bound


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_without_room_a_policy_that_has_not_moved_is_still_free(advantage, form):
    logprob_T, advantage_T = torch.tensor([-1.0, -0.3, -7.7]), torch.full((3,), advantage)
    for function in (grpo_loss_ref, form):
        found = run(
            function, logprob_T=logprob_T, old_logprob_T=logprob_T, advantage_T=advantage_T, clip_low=0.0, clip_high=0.0
        )
        assert not found.is_clipped_T.any()
        assert found.loss_T.tolist() == found.d_logprob_T.tolist() == (-advantage_T).tolist()


# Laws


@given(st.lists(tokens, min_size=1, max_size=6), st.floats(1.01, 5))
def test_dual_clip_bounds_the_loss_of_a_bad_token(some, dual_clip):
    arguments = tensors_of(some)
    loss_T = grpo_loss(**arguments, **CLIP, dual_clip=dual_clip).loss_T
    weighted_T = arguments["importance_weight_T"] * arguments["advantage_T"].clamp(max=0)
    assert (loss_T <= -dual_clip * weighted_T * (1 + 1e-12)).all()


@given(st.lists(tokens, min_size=1, max_size=12), options, st.lists(st.integers(0, 12), max_size=3))
def test_shares_add_up_however_the_tokens_are_split(some, options, cuts):
    arguments = tensors_of(some)
    whole = run(grpo_loss, **arguments, **options)
    ends = [0, *sorted(min(cut, len(some)) for cut in cuts), len(some)]
    parts = [
        run(grpo_loss, **{name: x[start:end] for name, x in arguments.items()}, **options)
        for start, end in itertools.pairwise(ends)
    ]
    slack = 1e-13 * whole.loss_T.abs().sum().item()
    assert sum(part.loss_T.sum().item() for part in parts) == pytest.approx(whole.loss_T.sum().item(), abs=slack)
    torch.testing.assert_close(torch.cat([part.d_logprob_T for part in parts]), whole.d_logprob_T)
    mean = run(grpo_loss, **arguments, **options | {"num_tokens": 1.0}).loss_T.sum().item() / options["num_tokens"]
    assert mean == pytest.approx(whole.loss_T.sum().item(), abs=slack)


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_what_each_estimator_pulls_to_when_the_policy_draws_the_tokens(kl_estimator):
    """Exact expectations: no pull, that of KL(policy ‖ reference), that of KL(reference ‖ policy)."""
    generator = torch.Generator().manual_seed(0)
    logits_V, reference_V = torch.randn(2, 6, generator=generator, dtype=torch.float64).unbind()
    logits_V.requires_grad_()
    policy_V, reference_V = logits_V.log_softmax(-1), reference_V.log_softmax(-1)
    found = grpo_loss(
        policy_V, policy_V.detach(), torch.zeros_like(policy_V), reference_logprob_T=reference_V, kl_coef=1.0,
        kl_estimator=kl_estimator, **CLIP,
    )  # fmt: skip
    (pull_V,) = torch.autograd.grad((policy_V.detach().exp() * found.loss_T).sum(), logits_V, retain_graph=True)
    reverse = (policy_V.exp() * (policy_V - reference_V)).sum()
    forward = (reference_V.exp() * (reference_V - policy_V)).sum()
    right = {"k1": 0.0 * reverse, "k2": reverse, "k3": forward}[kl_estimator]
    torch.testing.assert_close(pull_V, torch.autograd.grad(right, logits_V)[0])
    if kl_estimator != "k2":  # unbiased as a value
        torch.testing.assert_close((policy_V.exp() * found.kl_T).sum(), reverse)


# Layouts, sizes, modes


def test_no_tokens(form):
    found = run(form, **problem(0, torch.float32))
    assert [tuple(x.shape) for x in found] == [(0,)] * 5


def test_inputs_of_any_layout(form):
    arguments = problem(600, torch.float32)
    arguments["advantage_T"] = torch.tensor([-0.7]).expand(600)
    strided = {
        name: torch.stack([x, x.flip(0)], 1)[:, 0] if isinstance(x, torch.Tensor) and x.stride() == (1,) else x
        for name, x in arguments.items()
    }
    assert not any(strided[name].is_contiguous() for name in (*INPUTS, *OPTIONAL, "mask_T"))
    upstream_T = torch.linspace(-1, 2, 1200)[::2]
    for ours, right in zip(run(form, upstream_T, **strided), run(form, upstream_T, **arguments), strict=True):
        assert torch.equal(ours, right)


def test_inputs_of_several_dtypes(form):
    arguments = problem(40, torch.float32)
    arguments |= {name: arguments[name].bfloat16() for name in ("advantage_T", "entropy_T")}
    arguments["old_logprob_T"] = arguments["old_logprob_T"].double()
    found = run(form, **arguments)
    assert_same(list(found)[:4], list(run(grpo_loss_ref, **arguments))[:4], 1e-6)
    assert (found.loss_T.dtype, found.d_logprob_T.dtype) == (torch.float32, torch.float32)
    assert found.d_entropy_T.dtype == torch.bfloat16


@pytest.mark.parametrize("trained", [(), ("logprob_T",), ("entropy_T",)])
def test_gradients_for_what_asks_for_them(trained, form):
    arguments = problem(40, torch.float32)
    leaves = [arguments[name].requires_grad_() for name in trained]
    result = form(**arguments)
    assert result.loss_T.requires_grad == bool(trained)
    assert not (result.is_clipped_T.requires_grad or result.kl_T.requires_grad)
    right = run(form, **arguments)
    assert torch.equal(result.loss_T.detach().cpu(), right.loss_T)
    if trained:
        (ours_T,) = torch.autograd.grad(result.loss_T.sum(), leaves)
        assert torch.equal(ours_T, right.d_logprob_T if trained == ("logprob_T",) else right.d_entropy_T)


def test_constants_get_no_gradient(form):
    constants = ("old_logprob_T", "advantage_T", "reference_logprob_T", "importance_weight_T")
    for function in (grpo_loss_ref, form):
        arguments = problem(40, torch.float32)
        for name in (*constants, "logprob_T"):
            arguments[name].requires_grad_()
        function(**arguments).loss_T.sum().backward()
        assert arguments["logprob_T"].grad.any()
        assert [arguments[name].grad for name in constants] == [None] * 4


def test_works_without_gradients(form):
    arguments = problem(40, torch.float32)
    with torch.inference_mode():
        loss_T = form(**arguments).loss_T
    assert torch.equal(loss_T.cpu(), run(form, **arguments).loss_T)


def test_options_may_be_whole_numbers(form):
    whole = {"clip_low": 0, "clip_high": 1, "dual_clip": 3, "kl_coef": 1, "entropy_coef": 1, "num_tokens": 1}
    arguments = problem(40, torch.float32)
    found = run(form, **arguments | whole)
    for x, y in zip(found, run(form, **arguments | {name: float(n) for name, n in whole.items()}), strict=True):
        assert torch.equal(x, y)


def test_inputs_are_left_as_they_are(form):
    arguments = problem(40, torch.float32)
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    run(form, **arguments)
    assert all(torch.equal(arguments[name], x) for name, x in before.items())


def test_cannot_be_differentiated_twice():
    arguments = problem(4)
    logprob_T = arguments["logprob_T"].requires_grad_()
    upstream_T = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (d_logprob_T,) = torch.autograd.grad(grpo_loss(**arguments).loss_T, logprob_T, upstream_T, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_logprob_T.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprob_T": torch.zeros(5, 1)}, r"logprob must have dimensions \[T\], got shape \(5, 1\)"),
        ({"old_logprob_T": torch.zeros(4)}, r"old_logprob \[T\] has shape \(4,\), but T is 5 in logprob"),
        ({"advantage_T": torch.zeros(1)}, r"advantage \[T\] has shape \(1,\), but T is 5 in logprob"),
        ({"reference_logprob_T": torch.zeros(6)}, r"reference_logprob \[T\] has shape \(6,\)"),
        ({"importance_weight_T": torch.zeros(6)}, r"importance_weight \[T\] has shape \(6,\)"),
        ({"entropy_T": torch.zeros(6)}, r"entropy \[T\] has shape \(6,\)"),
        ({"mask_T": torch.ones(6, dtype=torch.bool)}, r"mask \[T\] has shape \(6,\)"),
        ({"entropy_T": torch.zeros(5, device="meta")}, "entropy is on meta, but logprob on cpu"),
        ({"logprob_T": torch.zeros(5, dtype=torch.int64)}, "logprob must be torch.bfloat16 or .*, got torch.int64"),
        ({"advantage_T": torch.zeros(5).half()}, "advantage must be torch.bfloat16 or .*, got torch.float16"),
        ({"mask_T": torch.ones(5)}, "mask must be torch.bool, got torch.float32"),
        ({"clip_low": -0.1}, r"clip_low must be in \[0, 1\), got -0.1"),
        ({"clip_low": 1}, r"clip_low must be in \[0, 1\), got 1"),
        ({"clip_low": math.nan}, "clip_low must be"),
        ({"clip_low": None}, r"clip_low must be in \[0, 1\), got None"),
        ({"clip_high": "0.2"}, "clip_high must be at least 0, got '0.2'"),
        ({"dual_clip": "3"}, "dual_clip must be above 1, or None, got '3'"),
        ({"kl_coef": None}, "kl_coef must be at least 0 and finite, got None"),
        ({"entropy_coef": None}, "entropy_coef must be at least 0 and finite, got None"),
        ({"num_tokens": None}, "num_tokens must be positive and finite, got None"),
        ({"clip_high": -0.1}, "clip_high must be at least 0, got -0.1"),
        ({"clip_high": math.nan}, "clip_high must be"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1, or None, got 1.0"),
        ({"dual_clip": math.nan}, "dual_clip must be"),
        ({"kl_estimator": "k4"}, "kl_estimator must be k1, k2 or k3, got 'k4'"),
        ({"kl_estimator": None}, "kl_estimator must be k1, k2 or k3, got None"),
        ({"kl_coef": -1.0}, "kl_coef must be at least 0 and finite, got -1.0"),
        ({"kl_coef": math.inf}, "kl_coef must be"),
        ({"kl_coef": 0.1, "reference_logprob_T": None}, "kl_coef=0.1 needs reference_logprob"),
        ({"entropy_coef": -1.0}, "entropy_coef must be at least 0 and finite, got -1.0"),
        ({"entropy_coef": math.nan}, "entropy_coef must be"),
        ({"entropy_coef": 0.1, "entropy_T": None}, "entropy_coef=0.1 needs entropy"),
        ({"num_tokens": torch.tensor(3)}, r"num_tokens must be a number, got a tensor: hand in its \.item\(\)"),
        ({"num_tokens": 0}, "num_tokens must be positive and finite, got 0"),
        ({"num_tokens": math.inf}, "num_tokens must be"),
    ],
)
def test_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        grpo_loss(**problem(5, torch.float32) | changes)


def test_runs_where_its_tensors_are(monkeypatch):
    """Triton launches on the current device, which need not be that of the tensors."""
    arguments, guarded = problem(5), []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: guarded.append(x) or nullcontext())
    grpo_loss(**arguments)
    assert len(guarded) == 1 and guarded[0] is arguments["logprob_T"]


@pytest.mark.parametrize("name", INPUTS)
def test_says_what_is_no_tensor(name):
    with pytest.raises(TypeError, match=rf"^{name[:-2]} must be a tensor \[T\], got NoneType"):
        grpo_loss(**problem(5, torch.float32) | {name: None})
