"""Arguments of the public functions: a wrong one is told by its name, in one line."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(**tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Binds each letter to a size, and requires equal sizes for equal letters and one device for all.

        check_shapes(hidden=(hidden_TD, "TD"), weight=(weight_VD, "VD"))  # {"T": 5, "D": 64, "V": 100}

    Raises:
        TypeError: not a tensor.
        ValueError: another number of dimensions, a size that an earlier tensor contradicts, or another device.
    """
    sizes: dict[str, tuple[int, str]] = {}
    first = next(iter(tensors))
    for name, (tensor, dims) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor [{', '.join(dims)}], got {type(tensor).__name__}")
        shape = tuple(tensor.shape)
        if len(shape) != len(dims):
            raise ValueError(f"{name} must have dimensions [{', '.join(dims)}], got shape {shape}")
        for letter, size in zip(dims, shape, strict=True):
            right, other = sizes.setdefault(letter, (size, name))
            if size != right:
                raise ValueError(f"{name} [{', '.join(dims)}] has shape {shape}, but {letter} is {right} in {other}")
        device = tensors[first][0].device
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} on {device}")
    return {letter: size for letter, (size, _) in sizes.items()}


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raises ValueError unless the tensor has one of the dtypes."""
    if tensor.dtype not in allowed:
        raise ValueError(f"{name} must be {' or '.join(str(dtype) for dtype in allowed)}, got {tensor.dtype}")


def check_token_ids(name: str, token_T: Tensor, V: int) -> None:
    """Raises ValueError unless token ids are int64 in [0, V). On a GPU this waits for the device."""
    check_dtype(name, token_T, torch.int64)
    if token_T.numel():
        low, high = torch.stack(token_T.aminmax()).tolist()
        if low < 0 or high >= V:
            raise ValueError(f"{name} must lie in [0, {V}), got ids from {low} to {high}")
