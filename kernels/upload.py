"""Arrays of the host on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(x: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on a device, for which the host does not wait; on a CPU of the array's own memory.

    Only from pinned memory does a copy leave the host free, and pages are pinned once and used again. A plain copy
    waits until the device has done all that it was told before.
    """
    tensor = torch.from_numpy(x)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
