"""Products that are summed and kept in float32.

B rows   D model width   V vocabulary
"""

import pytest
import torch
import torch.nn.functional as F

from kernels.matmul import PackedWeights, addmm_, float32_logits, lay_side_by_side_, linear, linears, side_by_side

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


@pytest.mark.parametrize(("N", "D"), [(1, 256), (37, 64), (333, 100), (1000, 48), (96, 1536), (520, 3072)])
def test_rows_of_packed_weights_do_not_depend_on_one_another(N, D):
    generator = torch.Generator().manual_seed(1)
    x_BD, weight_ND, bias_N = (torch.randn(shape, generator=generator) for shape in ((600, D), (N, D), (N,)))
    with PackedWeights().in_use(), torch.no_grad():
        y_BN = linear(x_BD, weight_ND, bias_N)
        torch.testing.assert_close(y_BN, F.linear(x_BD, weight_ND, bias_N), rtol=1e-4, atol=1e-3)
        for num in (1, 2, 3, 4, 5, 12, 17, 64, 130, 599):
            assert torch.equal(linear(x_BD[:num], weight_ND, bias_N), y_BN[:num])
            assert torch.equal(linear(x_BD[None, -num:], weight_ND, bias_N), y_BN[None, -num:])


def test_packed_weights_have_gradients_and_the_same_bits_with_them():
    generator = torch.Generator().manual_seed(2)
    x_BTD, weight_ND, bias_N = (
        torch.randn(shape, generator=generator, requires_grad=True) for shape in ((2, 7, 64), (40, 64), (40,))
    )
    packed = PackedWeights()
    with packed.in_use():
        y_BTN = linear(x_BTD, weight_ND, bias_N)
        with torch.no_grad():
            assert torch.equal(y_BTN, linear(x_BTD, weight_ND, bias_N))
    dy_BTN = torch.randn(y_BTN.shape, generator=generator)
    found = torch.autograd.grad(y_BTN, (x_BTD, weight_ND, bias_N), dy_BTN)
    wanted = torch.autograd.grad(F.linear(x_BTD, weight_ND, bias_N), (x_BTD, weight_ND, bias_N), dy_BTN)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_packed_weights_follow_what_is_written_to_the_weights():
    x_BD, weight_ND = torch.randn(4, 16), torch.randn(8, 16)
    packed = PackedWeights()
    with packed.in_use(), torch.no_grad():
        before_BN = linear(x_BD, weight_ND)
        weight_ND.mul_(2)
        assert torch.equal(linear(x_BD, weight_ND), 2 * before_BN)
    assert torch.equal(linear(x_BD, weight_ND), F.linear(x_BD, weight_ND))  # no longer in use
    packed.clear()
    with packed.in_use(), torch.no_grad():
        assert torch.equal(linear(x_BD, weight_ND), 2 * before_BN)


def test_tensors_are_laid_side_by_side():
    tensors = [torch.randn(n, 5) for n in (3, 1, 4)]
    copies = [x.clone() for x in tensors]
    assert side_by_side(tensors) is None
    lay_side_by_side_(tensors)
    whole = side_by_side(tensors)
    assert torch.equal(whole, torch.cat(copies)) and all(map(torch.equal, tensors, copies))
    tensors[1].fill_(7)
    assert (whole[3] == 7).all()  # a view
    assert side_by_side(tensors[::-1]) is None and side_by_side([tensors[0], tensors[2]]) is None
    assert torch.equal(side_by_side(tensors[1:]), whole[3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_torchs(dtype):
    x_BD, weight_ND = torch.randn(4, 16).to(dtype), torch.randn(8, 16).to(dtype)
    with PackedWeights().in_use():
        assert torch.equal(linear(x_BD, weight_ND), F.linear(x_BD, weight_ND))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_on_a_gpu(dtype, beta):
    hidden_BD, weight_VD = (x.cuda() for x in operands(dtype))
    out_BV = torch.full((9, 33), torch.nan if beta == 0 else 3.0, device="cuda")
    addmm_(out_BV, hidden_BD, weight_VD.T, beta=beta, alpha=0.5)
    right_BV = 3.0 * beta + 0.5 * (hidden_BD.double() @ weight_VD.double().T)
    assert (out_BV - right_BV).abs().max() < 1e-4


def test_products_of_one_input_are_those_of_each():
    generator = torch.Generator().manual_seed(4)
    x_BD, *weights = (torch.randn(shape, generator=generator) for shape in ((9, 48), (32, 48), (5, 48), (16, 48)))
    biases = [torch.randn(len(weight), generator=generator) for weight in weights]
    with PackedWeights().in_use():
        assert linears(x_BD, weights, biases) is None  # with gradients each has its own
        with torch.no_grad():
            for _ in range(2):
                for some in (biases, None):
                    of_each = [linear(x_BD, w, b) for w, b in zip(weights, some or [None] * 3, strict=True)]
                    assert torch.equal(linears(x_BD, weights, some), torch.cat(of_each, -1))
                weights[1].mul_(-2)  # is noticed
    with torch.no_grad():
        assert linears(x_BD, weights) is None  # they lie apart
        lay_side_by_side_(weights)
        torch.testing.assert_close(linears(x_BD, weights), x_BD @ torch.cat(weights).T)
