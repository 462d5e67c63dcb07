"""Rotary tables and their scalings against transformers' own.

B sequences   T positions   C head width   W = C / 2 planes of rotation
"""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kernels.fused import rotary_ref
from rollout.rope import LinearRope, Llama3Rope, YarnRope, rotary_tables

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32_768}
# (scaling, theta, head width): as published models have them, then the corners of each formula.
CASES = {
    "linear": (LinearRope(factor=4.0), 10_000.0, 128),
    "linear, not a power of two": (LinearRope(factor=3.3), 10_000.0, 128),
    "Llama 3.1": (Llama3Rope(factor=8.0, **LLAMA3), 500_000.0, 128),
    "Llama 3.2": (Llama3Rope(factor=32.0, **LLAMA3), 500_000.0, 64),
    "llama3, all slow": (Llama3Rope(factor=8.0, **LLAMA3 | {"original_max_position_embeddings": 1}), 500_000.0, 64),
    "llama3, all fast": (Llama3Rope(factor=8.0, **LLAMA3 | {"original_max_position_embeddings": 10**9}), 1e4, 64),
    "Qwen3": (YarnRope(**YARN), 1_000_000.0, 128),
    "yarn, attention factor": (YarnRope(**YARN, attention_factor=0.7), 1_000_000.0, 128),
    "yarn, mscale": (YarnRope(**YARN, mscale=0.7, mscale_all_dim=1.3), 1_000_000.0, 128),
    "yarn, one mscale counts for none": (YarnRope(**YARN, mscale=0.7), 1_000_000.0, 128),
    "yarn, whole planes or not": (YarnRope(**YARN, truncate=False), 1_000_000.0, 128),
    "yarn, another ramp": (YarnRope(**YARN, beta_fast=5.0, beta_slow=2.0), 1_000_000.0, 128),
    "yarn, ramp before the first plane": (YarnRope(factor=4.0, original_max_position_embeddings=2), 1e4, 64),
    "yarn, a step": (YarnRope(**YARN, beta_fast=2.0, beta_slow=2.0, truncate=False), 1e6, 64),
    "yarn, no longer": (YarnRope(factor=1.0, original_max_position_embeddings=64), 1e4, 64),
}
each_case = pytest.mark.parametrize("case", CASES)


def transformers_config(scaling, theta, head_dim):
    settings = {name: getattr(scaling, name) for name in scaling.__slots__}
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": scaling.rope_type, "rope_theta": theta, **settings},
    )


@each_case
def test_frequencies_and_attention_scale_are_those_of_transformers(case):
    scaling, theta, C = CASES[case]
    frequency_W, scale = ROPE_INIT_FUNCTIONS[scaling.rope_type](transformers_config(scaling, theta, C), "cpu")
    period_W = theta ** (torch.arange(0, C, 2, dtype=torch.float32) / C)
    assert torch.equal(scaling.frequencies(period_W, theta), frequency_W)
    assert scaling.attention_scale == scale


@each_case
def test_tables_are_those_of_transformers_far_into_a_text(case):
    scaling, theta, C = CASES[case]
    rotary = LlamaRotaryEmbedding(transformers_config(scaling, theta, C))
    position_BT = torch.tensor([[0, 1, 2, 100], [4095, 8191, 70_000, 131_071]])
    for ours_BTC, theirs_BTC in zip(
        rotary_tables(position_BT, C, theta, scaling), rotary(torch.zeros(1), position_BT), strict=True
    ):
        assert ours_BTC.dtype == torch.float32
        assert torch.equal(ours_BTC, theirs_BTC)


def test_unscaled_tables_are_those_of_transformers():
    rotary = LlamaRotaryEmbedding(
        LlamaConfig(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0})
    )
    position_BT = torch.arange(40_000)[None]
    tables = zip(rotary_tables(position_BT, 128, 1_000_000.0), rotary(torch.zeros(1), position_BT), strict=True)
    assert all(torch.equal(ours_BTC, theirs_BTC) for ours_BTC, theirs_BTC in tables)


@each_case
def test_an_angle_depends_on_its_own_position_alone(case):
    scaling, theta, C = CASES[case]
    position_BT = torch.tensor([[5, 131_071, 17]])
    for together_BTC, alone_BTC in zip(
        rotary_tables(position_BT, C, theta, scaling), rotary_tables(position_BT[:, 2:], C, theta, scaling), strict=True
    ):
        assert torch.equal(together_BTC[:, 2:], alone_BTC)


def test_a_rotation_keeps_lengths_and_turns_by_the_distance():
    generator = torch.Generator().manual_seed(0)
    q_BTHC, k_BTHC = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)

    def product(q_position, k_position):
        turned = []
        for x_BTHC, position in ((q_BTHC, q_position), (k_BTHC, k_position)):
            turned.append(rotary_ref(x_BTHC, *rotary_tables(torch.tensor([[position]]), 8, 100.0)))
            assert float(turned[-1].norm()) == pytest.approx(float(x_BTHC.norm()), rel=1e-6)
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRope(factor=0.0), "factor=0.0 must be positive"),
        (lambda: LinearRope(factor=math.inf), "factor=inf must be positive"),
        (lambda: YarnRope(**YARN | {"original_max_position_embeddings": -1}),
         "original_max_position_embeddings=-1 must be positive"),
        (lambda: YarnRope(**YARN, attention_factor=math.nan), "attention_factor=nan must be positive"),
        (lambda: Llama3Rope(factor=8.0, **LLAMA3 | {"low_freq_factor": 4.0}),
         "low_freq_factor=4.0 must be below high_freq_factor=4.0"),
    ],
)  # fmt: skip
def test_refuses_numbers_that_make_no_angle(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
