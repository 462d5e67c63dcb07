"""A wrong argument is told by its name."""

import pytest
import torch

from kernels.check import check_dtype, check_shapes, check_token_ids


def test_letters_are_bound():
    sizes = check_shapes(hidden=(torch.zeros(5, 3), "TD"), weight=(torch.zeros(7, 3), "VD"))
    assert sizes == {"T": 5, "D": 3, "V": 7}


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"hidden": (torch.zeros(5), "TD")}, r"hidden must have dimensions \[T, D\], got shape \(5,\)"),
        (
            {"hidden": (torch.zeros(5, 3), "TD"), "weight": (torch.zeros(7, 4), "VD")},
            r"weight \[V, D\] has shape \(7, 4\), but D is 3 in hidden",
        ),
        (
            {"hidden": (torch.zeros(5), "T"), "token": (torch.zeros(5, device="meta"), "T")},
            "token is on meta, but hidden on cpu",
        ),
    ],
)
def test_a_wrong_shape_or_device_is_named(tensors, words):
    with pytest.raises(ValueError, match=words):
        check_shapes(**tensors)


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"token must be a tensor \[T\], got list"):
        check_shapes(token=([1, 2], "T"))


def test_a_wrong_dtype_is_named():
    check_dtype("q", torch.zeros(1), torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"q must be torch.bfloat16 or torch.float32, got torch.int64"):
        check_dtype("q", torch.zeros(1, dtype=torch.int64), torch.bfloat16, torch.float32)


@pytest.mark.parametrize("ids", [[0, 7], [-1], [3, 1 << 40]])
def test_a_token_out_of_range_is_named(ids):
    with pytest.raises(ValueError, match=rf"token must lie in \[0, 7\), got ids from {min(ids)} to {max(ids)}"):
        check_token_ids("token", torch.tensor(ids), 7)


def test_no_tokens_are_right():
    check_token_ids("token", torch.tensor([], dtype=torch.int64), 7)
