"""What `bench/main.py kernels` times: each kernel at some shapes, and beside it the same thing as others write it.

The torch forms are the ordinary way to write each thing: logits in memory, log_softmax, autograd, a sort for the
filters. Matrix products are in the inputs' dtype, so those of bfloat16 round their logits; ours do not.

    B rows   T tokens   D model width   V vocabulary   H query heads   K key/value heads   C head width
    P tokens of a page   G groups   L tokens of a sequence, or pages in a table   S sequences   F feed-forward width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.step_ours import leaves_of
from bench.step_workload import pair_work
from kernels import fused
from kernels.grpo_loss import grpo_loss
from kernels.linear_logprob import linear_logprob
from kernels.linear_sample import linear_sample
from kernels.paged_attention import SharedPrefix, paged_attention
from kernels.sample import sample
from kernels.tree_attention import tree_attention_ref
from trainer.token_tree import MicroBatch, TokenTree
from trainer.tree_attention import subtree_ends, tree_attention

Outputs = dict[str, Tensor]
Form = Callable[[], Outputs]

CLIP_LOW, CLIP_HIGH, KL_COEF = 0.2, 0.28, 0.04
SPREAD = 4.0  # standard deviation of logits: an entropy of some nats, as of language models


@dataclass(frozen=True, slots=True)
class Case:
    """One shape of one kernel.

    Outputs of equal names are equal in all forms; "x_sum" is the sum of "x", and "token…" is random.
    """

    inputs: dict[str, Tensor]
    forms: dict[str, Form | None]  # "ours" first; None: not installed here
    num_bytes: int  # that must move: inputs read once, outputs written once
    num_flops: int  # of matrix products


def sample_case(device: str, B: int, V: int, dtype: torch.dtype, top_k: int = 0, top_p: float = 1.0) -> Case:
    random = torch.Generator(device).manual_seed(0)
    logits_BV = _normal(random, B, V, dtype=dtype, scale=SPREAD)
    draw = sample_torch if (top_k, top_p) == (0, 1.0) else partial(filtered_sample_torch, top_k=top_k, top_p=top_p)
    ours = partial(sample, logits_BV, **_noise(B, device), top_k=top_k, top_p=top_p, check=False)
    forms = {"ours": lambda: _drawn(ours())} | {
        name: partial(form, logits_BV) for name, form in _in_torch(device, draw).items()
    }
    return Case({"logits": logits_BV}, forms, logits_BV.nbytes, 0)


def linear_sample_case(device: str, B: int, D: int, V: int, dtype: torch.dtype) -> Case:
    random = torch.Generator(device).manual_seed(0)
    hidden_BD, weight_VD = _head(random, B, D, V, dtype)
    ours = partial(linear_sample, hidden_BD, weight_VD, **_noise(B, device), check=False)
    forms = {"ours": lambda: _drawn(ours())} | {
        name: partial(form, hidden_BD, weight_VD) for name, form in _in_torch(device, linear_sample_torch).items()
    }
    inputs = {"hidden": hidden_BD, "weight": weight_VD}
    return Case(inputs, forms, hidden_BD.nbytes + weight_VD.nbytes, 2 * B * V * D)


def linear_logprob_case(device: str, T: int, D: int, V: int, dtype: torch.dtype, backward: bool) -> Case:
    random = torch.Generator(device).manual_seed(0)
    hidden_TD, weight_VD = (x_XD.requires_grad_(backward) for x_XD in _head(random, T, D, V, dtype))
    token_T = torch.randint(V, (T,), generator=random, device=device)
    upstream = [_normal(random, T) for _ in range(2)]

    def run(form: Callable) -> Outputs:
        logprob_T, entropy_T = form(hidden_TD, weight_VD, token_T)
        outputs = {"logprob": logprob_T.detach(), "entropy": entropy_T.detach()}
        if not backward:
            return outputs
        gradients = torch.autograd.grad((logprob_T, entropy_T), (hidden_TD, weight_VD), upstream)
        return outputs | dict(zip(("d_hidden", "d_weight"), gradients, strict=True))

    both = {"ours": partial(linear_logprob, check=False)} | _in_torch(device, linear_logprob_torch)
    forms: dict[str, Form | None] = {name: partial(run, form) for name, form in both.items()}
    if device != "cpu":
        forms["Liger"] = liger_cross_entropy(hidden_TD, weight_VD, token_T, backward)
    inputs = {"hidden": hidden_TD, "weight": weight_VD, "token": token_T}
    passes = 2 if backward else 1
    num_bytes = passes * (hidden_TD.nbytes + weight_VD.nbytes)
    return Case(inputs, forms, num_bytes, (8 if backward else 2) * T * V * D)


def grpo_loss_case(device: str, T: int) -> Case:
    random = torch.Generator(device).manual_seed(0)
    logprob_T = (-_normal(random, T).abs()).requires_grad_()
    old_T, reference_T = (logprob_T.detach() + _normal(random, T, scale=0.2) for _ in range(2))
    advantage_T, upstream_T = _normal(random, T), _normal(random, T)
    mask_T = torch.rand(T, generator=random, device=device) < 0.9

    def ours(*tensors: Tensor) -> tuple[Tensor, ...]:
        *tensors, reference_T, mask_T = tensors
        result = grpo_loss(
            *tensors, clip_low=CLIP_LOW, clip_high=CLIP_HIGH, reference_logprob_T=reference_T, kl_coef=KL_COEF,
            mask_T=mask_T, num_tokens=T,
        )  # fmt: skip
        return result.loss_T, result.is_clipped_T, result.kl_T

    def run(form: Callable) -> Outputs:
        loss_T, is_clipped_T, kl_T = form(logprob_T, old_T, advantage_T, reference_T, mask_T)
        (d_logprob_T,) = torch.autograd.grad(loss_T, logprob_T, upstream_T)
        return {"loss": loss_T.detach(), "is_clipped": is_clipped_T, "kl": kl_T.detach(), "d_logprob": d_logprob_T}

    forms = {name: partial(run, form) for name, form in ({"ours": ours} | _in_torch(device, grpo_loss_torch)).items()}
    inputs = {"logprob": logprob_T, "old": old_T, "advantage": advantage_T, "reference": reference_T, "mask": mask_T}
    # Forward reads the inputs and writes loss, KL, slope and a byte; backward reads slope and upstream, writes one.
    return Case(inputs, forms, sum(x_T.nbytes for x_T in inputs.values()) + (4 + 4 + 4 + 1 + 12) * T, 0)


def linear_grpo_loss_case(device: str, S: int, L: int, D: int, V: int, dtype: torch.dtype) -> Case:
    """From hidden states to the step's loss: linear_logprob and grpo_loss. The loss that Liger offers starts there."""
    random = torch.Generator(device).manual_seed(0)
    T = S * L
    hidden_TD, weight_VD = (x_XD.requires_grad_() for x_XD in _head(random, T, D, V, dtype))
    token_T = torch.randint(V, (T,), generator=random, device=device)
    with torch.no_grad():
        logprob_T, _ = linear_logprob(hidden_TD, weight_VD, token_T)
    old_T, reference_T = (logprob_T + _normal(random, T, scale=0.2) for _ in range(2))
    advantage_S, mask_T = _normal(random, S), torch.ones(T, dtype=torch.bool, device=device)

    def ours(hidden_TD: Tensor, weight_VD: Tensor, advantage_T: Tensor) -> Tensor:
        logprob_T, _ = linear_logprob(hidden_TD, weight_VD, token_T, check=False)
        return grpo_loss(
            logprob_T, old_T, advantage_T, clip_low=CLIP_LOW, clip_high=CLIP_HIGH, reference_logprob_T=reference_T,
            kl_coef=KL_COEF, num_tokens=T,
        ).loss_T  # fmt: skip

    def in_torch(hidden_TD: Tensor, weight_VD: Tensor, advantage_T: Tensor) -> Tensor:
        logprob_TV = F.linear(hidden_TD, weight_VD).float().log_softmax(-1)
        logprob_T = logprob_TV.gather(-1, token_T[:, None])[:, 0]
        return grpo_loss_torch(logprob_T, old_T, advantage_T, reference_T, mask_T)[0]

    def run(form: Callable) -> Outputs:
        loss = form(hidden_TD, weight_VD, advantage_S.repeat_interleave(L)).sum()
        d_hidden_TD, d_weight_VD = torch.autograd.grad(loss, (hidden_TD, weight_VD))
        return {"loss": loss.detach(), "d_hidden": d_hidden_TD, "d_weight": d_weight_VD}

    both = {"ours": ours} | _in_torch(device, in_torch)
    forms: dict[str, Form | None] = {name: partial(run, form) for name, form in both.items()}
    if device != "cpu":
        forms["Liger"] = liger_grpo(hidden_TD, weight_VD, token_T, advantage_S, reference_T, old_T)
    inputs = {
        "hidden": hidden_TD, "weight": weight_VD, "token": token_T, "advantage": advantage_S, "reference": reference_T,
        "old": old_T,
    }  # fmt: skip
    return Case(inputs, forms, 2 * (hidden_TD.nbytes + weight_VD.nbytes), 8 * T * V * D)


def paged_attention_case(
    device: str, G: int, n: int, prefix: int, own: int, H: int, K: int, C: int, P: int, dtype: torch.dtype
) -> Case:
    """G groups of n rows; in the flat form each row reads the prefix, by way of its own table, from the same pages."""
    random = torch.Generator(device).manual_seed(0)
    B = G * n
    shared, alone = G * prefix // P, B * own // P
    page_N = torch.randperm(shared + alone, generator=random, device=device).int()
    key_NPKC, value_NPKC = (_normal(random, shared + alone, P, K, C, dtype=dtype) for _ in range(2))
    q_BHC = _normal(random, B, H, C, dtype=dtype)
    prefix_GL, own_BL = page_N[:shared].view(G, -1), page_N[shared:].view(B, -1)
    flat_BL = torch.cat([prefix_GL.repeat_interleave(n, 0), own_BL], 1)

    def lengths(number: int, tokens: int) -> Tensor:
        return torch.full((number,), tokens, dtype=torch.int32, device=device)

    row_start_G1 = torch.arange(0, B + 1, n, dtype=torch.int32, device=device)
    siblings = SharedPrefix(prefix_GL, lengths(G, prefix), row_start_G1, n)
    pages, flat_length_B, own_length_B = (q_BHC, key_NPKC, value_NPKC), lengths(B, prefix + own), lengths(B, own)
    ours = partial(paged_attention, *pages, own_BL, own_length_B, prefix=siblings, check=False)
    flat = partial(paged_attention, *pages, flat_BL, flat_length_B, check=False)
    forms = {"ours": lambda: {"out": ours()}, "ours, flat": lambda: {"out": flat()}}
    index_BL = flat_BL.long()
    for name, form in _in_torch(device, paged_attention_torch).items():
        forms[name] = lambda form=form: {"out": form(*pages, index_BL)}
    num_bytes = (G * prefix + B * own) * 2 * K * C * q_BHC.itemsize + 2 * q_BHC.nbytes
    inputs = {"q": q_BHC, "key_pages": key_NPKC, "value_pages": value_NPKC}
    return Case(inputs, forms, num_bytes, 4 * B * H * C * (prefix + own))


def tree_attention_case(
    device: str, pairs: int, n: int, shorten: float, H: int, K: int, C: int, dtype: torch.dtype
) -> Case:
    """Forward and backward over the trees of a training step, all in one layout."""
    random = torch.Generator(device).manual_seed(0)
    trees = [TokenTree.of(leaves) for leaves in leaves_of(pair_work(pairs, n, shorten, _V))]
    batch = MicroBatch.of(trees, torch.device(device))
    end_L = torch.from_numpy(subtree_ends(batch.nodes)).to(device)
    L = len(end_L)
    q_1LHC, k_1LKC, v_1LKC = (_normal(random, 1, L, x, C, dtype=dtype).requires_grad_() for x in (H, K, K))
    do_1LHC, attend = _normal(random, 1, L, H, C, dtype=dtype), tree_attention(batch.nodes, torch.device(device))

    def run(form: Callable) -> Outputs:
        o_1LHC = form(q_1LHC, k_1LKC, v_1LKC)
        gradients = torch.autograd.grad(o_1LHC, (q_1LHC, k_1LKC, v_1LKC), do_1LHC)
        return {"o": o_1LHC.detach()} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))

    def masked(q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        return tree_attention_ref(q_1LHC[0], k_1LKC[0], v_1LKC[0], end_L)[None]

    forms = {"ours": partial(run, partial(attend, 0)), "torch": partial(run, masked)}
    if device == "cuda":
        forms["flex_attention"] = partial(run, _flex(end_L))
    num_pairs = sum(tree.num_attention_pairs for tree in trees)
    inputs = {"q": q_1LHC, "k": k_1LKC, "v": v_1LKC}
    # Forward reads q, k, v and writes o; backward reads these four and do, and writes dq, dk, dv.
    num_bytes = 6 * q_1LHC.nbytes + 3 * (k_1LKC.nbytes + v_1LKC.nbytes)
    return Case(inputs, forms, num_bytes, 14 * H * C * num_pairs)


def _flex(end_L: Tensor) -> Callable:
    """Compiled for this length alone."""
    L = len(end_L)
    mask = create_block_mask(lambda b, h, q, k: (k <= q) & (q < end_L[k]), None, None, L, L, device=end_L.device.type)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(*x_1LHC: Tensor) -> Tensor:
        q_1HLC, k_1KLC, v_1KLC = (x.transpose(1, 2) for x in x_1LHC)
        return compiled(q_1HLC, k_1KLC, v_1KLC, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return run


def rms_norm_case(device: str, T: int, D: int, dtype: torch.dtype) -> Case:
    random = torch.Generator(device).manual_seed(0)
    x_TD, weight_D = _normal(random, T, D, dtype=dtype), _normal(random, D, dtype=dtype)
    inputs = {"x": x_TD, "weight": weight_D}
    return _fused_case(device, fused.rms_norm, fused.rms_norm_ref, (x_TD, weight_D, 1e-6), inputs, ["out"])


def add_rms_norm_case(device: str, T: int, D: int, dtype: torch.dtype) -> Case:
    random = torch.Generator(device).manual_seed(0)
    (x_TD, delta_TD), weight_D = _normal(random, 2, T, D, dtype=dtype), _normal(random, D, dtype=dtype)
    inputs = {"x": x_TD, "delta": delta_TD, "weight": weight_D}
    arguments = (x_TD, delta_TD, weight_D, 1e-6)
    return _fused_case(device, fused.add_rms_norm, fused.add_rms_norm_ref, arguments, inputs, ["total", "out"])


def swiglu_case(device: str, T: int, F: int, dtype: torch.dtype) -> Case:
    gate_TF, up_TF = _normal(torch.Generator(device).manual_seed(0), T, 2 * F, dtype=dtype).chunk(2, -1)
    return _fused_case(
        device, fused.swiglu, fused.swiglu_ref, (gate_TF, up_TF), {"gate": gate_TF, "up": up_TF}, ["out"]
    )


def norm_rotary_case(device: str, T: int, H: int, K: int, C: int, dtype: torch.dtype) -> Case:
    """Queries and keys are parts of one product, as are values, which stay where they are."""
    random = torch.Generator(device).manual_seed(0)
    q_1THC, k_1TKC, _ = _normal(random, 1, T, H + 2 * K, C, dtype=dtype).split((H, K, K), 2)
    weights_2C, angle_1TC = _normal(random, 2, C, dtype=dtype), _normal(random, 1, T, C // 2).repeat(1, 1, 2)
    cos_1TC, sin_1TC = angle_1TC.cos(), angle_1TC.sin()
    arguments = (q_1THC, k_1TKC, *weights_2C, 1e-6, cos_1TC, sin_1TC)
    inputs = {"q": q_1THC, "k": k_1TKC, "weights": weights_2C, "cos": cos_1TC, "sin": sin_1TC}
    return _fused_case(device, fused.norm_rotary, fused.norm_rotary_ref, arguments, inputs, ["q", "k"])


def write_pages_case(device: str, T: int, K: int, C: int, P: int, dtype: torch.dtype) -> Case:
    """Each token to a place of its own, in any order."""
    random = torch.Generator(device).manual_seed(0)
    k_TKC, v_TKC = _normal(random, T, 2 * K, C, dtype=dtype).chunk(2, 1)
    place_T = torch.randperm(-(-T // P) * P, generator=random, device=device)[:T]
    page_T, slot_T = place_T // P, place_T % P
    pages_2NKPC = torch.zeros(2, -(-T // P), K, P, C, dtype=dtype, device=device)

    def written(form: Callable) -> Callable:
        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            form(*arguments)
            return arguments[-2:]

        return run

    inputs = {"k": k_TKC, "v": v_TKC, "page": page_T, "slot": slot_T}
    arguments, forms = (k_TKC, v_TKC, page_T, slot_T, *pages_2NKPC), (fused.write_pages, fused.write_pages_ref)
    return _fused_case(device, *map(written, forms), arguments, inputs, ["keys", "values"])


def _fused_case(
    device: str, ours: Callable, definition: Callable, arguments: tuple, inputs: dict[str, Tensor], outputs: list[str]
) -> Case:
    """The definition is the plain torch form. The outputs have the sizes of the first inputs."""

    def run(form: Callable) -> Outputs:
        with torch.no_grad():
            results = form(*arguments)
        return dict(zip(outputs, results if isinstance(results, tuple) else (results,), strict=True))

    forms = {name: partial(run, form) for name, form in ({"ours": ours} | _in_torch(device, definition)).items()}
    num_read = [x.nbytes for x in inputs.values()]
    return Case(inputs, forms, sum(num_read) + sum(num_read[: len(outputs)]), 0)


def sample_torch(logits_BV: Tensor) -> Outputs:
    """Soft-max, entropy and an exponential race, in float32."""
    logprob_BV = logits_BV.float().log_softmax(-1)
    p_BV = logprob_BV.exp()
    entropy_B = -(p_BV * logprob_BV).sum(-1)
    return _chosen(_race(p_BV), logprob_BV, entropy_B)


def filtered_sample_torch(logits_BV: Tensor, top_k: int, top_p: float) -> Outputs:
    """By a sort: the top_k largest, and of those the fewest whose mass reaches top_p."""
    logprob_BV = logits_BV.float().log_softmax(-1)
    entropy_B = -(logprob_BV.exp() * logprob_BV).sum(-1)
    sorted_BV, order_BV = logprob_BV.sort(-1, descending=True)
    if top_k:
        sorted_BV[:, top_k:] = -torch.inf
    p_BV = sorted_BV.softmax(-1)
    p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= top_p, 0)
    return _chosen(order_BV.gather(-1, _race(p_BV)[:, None])[:, 0], logprob_BV, entropy_B)


def _race(p_BV: Tensor) -> Tensor:
    """The first of exponential clocks of rates p. Uses p up."""
    return p_BV.div_(torch.empty_like(p_BV).exponential_()).argmax(-1)


def _chosen(token_B: Tensor, logprob_BV: Tensor, entropy_B: Tensor) -> Outputs:
    return {"token": token_B, "token_logprob": logprob_BV.gather(-1, token_B[:, None])[:, 0], "entropy": entropy_B}


def linear_sample_torch(hidden_BD: Tensor, weight_VD: Tensor) -> Outputs:
    return sample_torch(F.linear(hidden_BD, weight_VD))


def linear_logprob_torch(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    logprob_TV = F.linear(hidden_TD, weight_VD).float().log_softmax(-1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    return logprob_TV.gather(-1, token_T[:, None])[:, 0], entropy_T


def grpo_loss_torch(
    logprob_T: Tensor, old_T: Tensor, advantage_T: Tensor, reference_T: Tensor, mask_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, whether it is clipped, KL by k3) of every token."""
    ratio_T = (logprob_T - old_T).exp()
    whole_T, clipped_T = ratio_T * advantage_T, ratio_T.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage_T
    u_T = reference_T - logprob_T
    kl_T = (u_T.exp() - u_T - 1).masked_fill(~mask_T, 0)
    loss_T = KL_COEF * kl_T - torch.minimum(whole_T, clipped_T).masked_fill(~mask_T, 0)
    return loss_T / len(loss_T), (clipped_T < whole_T) & mask_T, kl_T


def paged_attention_torch(q_BHC: Tensor, key_NPKC: Tensor, value_NPKC: Tensor, table_BL: Tensor) -> Tensor:
    """Pages gathered, then torch's attention; every row has as many tokens as its table has slots."""
    key_BKTC, value_BKTC = (pages[table_BL].flatten(1, 2).transpose(1, 2) for pages in (key_NPKC, value_NPKC))
    return F.scaled_dot_product_attention(q_BHC[:, :, None], key_BKTC, value_BKTC, enable_gqa=True)[:, :, 0]


def liger_cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, backward: bool) -> Form | None:
    """-Σ log p alone: without entropies, and without a gradient of its own for each token."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    cross_entropy = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)

    def run() -> Outputs:
        loss = cross_entropy(weight_VD, hidden_TD, token_T)
        gradients = torch.autograd.grad(loss, (hidden_TD, weight_VD)) if backward else ()
        return {"logprob_sum": -loss.detach()} | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}

    return run


def liger_grpo(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, advantage_S: Tensor, reference_T: Tensor, old_T: Tensor
) -> Form | None:
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError:
        return None
    loss_of = LigerFusedLinearGRPOLoss(beta=KL_COEF, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="bnpo")
    token_SL, reference_SL, old_SL = (x_T.view(len(advantage_S), -1) for x_T in (token_T, reference_T, old_T))
    mask_SL = torch.ones_like(old_SL)

    def run() -> Outputs:
        hidden_SLD = hidden_TD.view(*token_SL.shape, -1)
        loss, _ = loss_of(
            hidden_SLD, weight_VD, token_SL, mask_SL, advantage_S, ref_per_token_logps=reference_SL,
            old_per_token_logps=old_SL,
        )  # fmt: skip
        d_hidden_TD, d_weight_VD = torch.autograd.grad(loss, (hidden_TD, weight_VD))
        return {"loss": loss.detach(), "d_hidden": d_hidden_TD, "d_weight": d_weight_VD}

    return run


def _in_torch(device: str, form: Callable) -> dict[str, Callable]:
    """The form, and on a GPU also compiled, for these shapes alone."""
    if device == "cpu":
        return {"torch": form}
    torch._dynamo.reset()  # after a few shapes of one function it would run uncompiled, without a word
    return {"torch": form, "torch.compile": torch.compile(form, dynamic=False)}


def _normal(random: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=dtype).mul_(scale)


def _head(random: torch.Generator, T: int, D: int, V: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states, and an LM head that makes logits of them with the spread of a language model's."""
    return _normal(random, T, D, dtype=dtype), _normal(random, V, D, dtype=dtype, scale=SPREAD * D**-0.5)


def _noise(B: int, device: str) -> dict[str, Tensor]:
    zero_B = torch.zeros(B, dtype=torch.int64, device=device)
    return {"seed_B": torch.arange(B, device=device), "sample_B": zero_B, "position_B": zero_B}


def _drawn(draw) -> Outputs:
    return {"token": draw.token_B, "token_logprob": draw.logprob_B, "entropy": draw.entropy_B}


MAKERS: dict[str, Callable[..., Case]] = {
    "sample": sample_case,
    "linear_sample": linear_sample_case,
    "linear_logprob": linear_logprob_case,
    "grpo_loss": grpo_loss_case,
    "linear_grpo_loss": linear_grpo_loss_case,
    "paged_attention": paged_attention_case,
    "tree_attention": tree_attention_case,
    "rms_norm": rms_norm_case,
    "add_rms_norm": add_rms_norm_case,
    "swiglu": swiglu_case,
    "norm_rotary": norm_rotary_case,
    "write_pages": write_pages_case,
}

_V = 151_936  # Qwen3; its 8B has D 4096, 32 query and 8 key/value heads of 128, its 14B D 5120
_BF16, _FP32 = torch.bfloat16, torch.float32


def _fused_shapes(lengths: tuple[int, ...], D: int, F: int, H: int, K: int, C: int, P: int, dtype) -> dict:
    sizes = {
        "rms_norm": {"D": D}, "add_rms_norm": {"D": D}, "swiglu": {"F": F}, "norm_rotary": {"H": H, "K": K, "C": C},
        "write_pages": {"K": K, "C": C, "P": P},
    }  # fmt: skip
    return {name: [{"T": T} | size | {"dtype": dtype} for T in lengths] for name, size in sizes.items()}


SHAPES: dict[str, dict[str, list[dict]]] = {
    "cuda": {
        "sample": [{"B": B, "V": _V, "dtype": dtype} for dtype in (_BF16, _FP32) for B in (1, 16, 64, 256, 512)]
        + [{"B": 256, "V": _V, "dtype": _BF16, "top_k": 20, "top_p": 0.95}],
        "linear_sample": [
            {"B": B, "D": D, "V": _V, "dtype": _BF16} for D in (4096, 5120) for B in (1, 8, 16, 64, 256)
        ],
        "linear_logprob": [
            {"T": T, "D": D, "V": _V, "dtype": _BF16, "backward": backward}
            for backward in (False, True) for D in (4096, 5120) for T in (4096, 8192, 32_768)
        ],
        "grpo_loss": [{"T": T} for T in (4096, 32_768, 131_072)],
        "linear_grpo_loss": [{"S": 8, "L": 1024, "D": D, "V": _V, "dtype": _BF16} for D in (4096, 5120)],
        "paged_attention": [
            {"G": G, "n": n, "prefix": 2048, "own": 512, "H": 32, "K": 8, "C": 128, "P": 16, "dtype": _BF16}
            for G, n in ((8, 1), (8, 4), (32, 8), (32, 32))
        ],
        "tree_attention": [  # of Qwen3-1.7B and 8B
            {"pairs": 4, "n": 4, "shorten": 1.0, "H": H, "K": 8, "C": 128, "dtype": _BF16} for H in (16, 32)
        ],
        **_fused_shapes((64, 256, 2048), 4096, 12_288, 32, 8, 128, 16, _BF16),  # decode twice, and prefill, of the 8B
    },
    "cpu": {
        "sample": [
            {"B": 64, "V": 32_768, "dtype": _FP32},
            {"B": 64, "V": 32_768, "dtype": _FP32, "top_k": 20, "top_p": 0.95},
        ],
        "linear_sample": [{"B": 64, "D": 512, "V": 32_768, "dtype": _FP32}],
        "linear_logprob": [
            {"T": 2048, "D": 512, "V": 32_768, "dtype": _FP32, "backward": backward} for backward in (False, True)
        ],
        "grpo_loss": [{"T": 65_536}],
        "linear_grpo_loss": [{"S": 8, "L": 256, "D": 512, "V": 32_768, "dtype": _FP32}],
        "paged_attention": [
            {"G": 4, "n": 8, "prefix": 1024, "own": 128, "H": 16, "K": 8, "C": 128, "P": 16, "dtype": _FP32}
        ],
        "tree_attention": [{"pairs": 1, "n": 8, "shorten": 8.0, "H": 16, "K": 8, "C": 64, "dtype": _FP32}],
        **_fused_shapes((64,), 1024, 3072, 16, 8, 128, 16, _FP32),  # of Qwen3-0.6B
    },
}  # fmt: skip
