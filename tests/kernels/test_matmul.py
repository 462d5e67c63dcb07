"""Products that are summed and kept in float32.

B rows   D model width   V vocabulary
"""

import pytest
import torch
import torch.nn.functional as F

from kernels.matmul import addmm_, float32_logits, linear

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


@pytest.mark.parametrize("shape", [(12, 100), (3, 4, 256), (1, 16, 320), (128, 96)])
def test_few_rows_have_the_bits_of_many(shape):
    generator = torch.Generator().manual_seed(1)
    x_BD, weight_ND = torch.randn(shape, generator=generator), torch.randn(333, shape[-1], generator=generator)
    many_BD = torch.cat([x_BD.flatten(0, -2), torch.randn(188, shape[-1], generator=generator)])
    with torch.no_grad():
        y_BN = linear(x_BD, weight_ND)
        assert torch.equal(y_BN.flatten(0, -2), F.linear(many_BD, weight_ND)[: len(y_BN.flatten(0, -2))])
    assert y_BN.shape == (*shape[:-1], 333) and y_BN.is_contiguous()


@pytest.mark.parametrize("rows", [1, 11, 16, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_is_torchs(rows, dtype):
    generator = torch.Generator().manual_seed(2)
    x_BD, weight_ND, bias_N = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 64), (40, 64), 40)
    )
    with torch.no_grad():
        assert torch.equal(linear(x_BD, weight_ND, bias_N), F.linear(x_BD, weight_ND, bias_N))
        torch.testing.assert_close(linear(x_BD, weight_ND), F.linear(x_BD, weight_ND))
    weight_ND.requires_grad_()
    linear(x_BD, weight_ND).square().sum().backward()
    grad_ND, weight_ND.grad = weight_ND.grad, None
    F.linear(x_BD, weight_ND).square().sum().backward()
    assert torch.equal(grad_ND, weight_ND.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_on_a_gpu(dtype, beta):
    hidden_BD, weight_VD = (x.cuda() for x in operands(dtype))
    out_BV = torch.full((9, 33), torch.nan if beta == 0 else 3.0, device="cuda")
    addmm_(out_BV, hidden_BD, weight_VD.T, beta=beta, alpha=0.5)
    right_BV = 3.0 * beta + 0.5 * (hidden_BD.double() @ weight_VD.double().T)
    assert (out_BV - right_BV).abs().max() < 1e-4
