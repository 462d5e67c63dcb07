"""Products that are summed and kept in float32.

B rows   D model width   V vocabulary
"""

import pytest
import torch

from kernels.matmul import addmm_, float32_logits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def operands(dtype):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(X, 64, generator=generator).to(dtype) for X in (9, 33))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_float32_sums(dtype):
    hidden_BD, weight_VD = operands(dtype)
    logits_BV = float32_logits(hidden_BD, weight_VD)
    assert logits_BV.dtype == torch.float32
    assert (logits_BV - hidden_BD.double() @ weight_VD.double().T).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_products_are_added_to_float32(dtype, beta):
    hidden_BD, weight_VD = operands(dtype)
    out_BV = torch.full((9, 33), torch.nan if beta == 0 else 3.0)
    addmm_(out_BV, hidden_BD, weight_VD.T, beta=beta, alpha=0.5)
    right_BV = 3.0 * beta + 0.5 * (hidden_BD.double() @ weight_VD.double().T)
    assert (out_BV - right_BV).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_on_a_gpu(dtype, beta):
    hidden_BD, weight_VD = (x.cuda() for x in operands(dtype))
    out_BV = torch.full((9, 33), torch.nan if beta == 0 else 3.0, device="cuda")
    addmm_(out_BV, hidden_BD, weight_VD.T, beta=beta, alpha=0.5)
    right_BV = 3.0 * beta + 0.5 * (hidden_BD.double() @ weight_VD.double().T)
    assert (out_BV - right_BV).abs().max() < 1e-4
