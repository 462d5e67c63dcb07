import numpy as np
import pytest
import torch

from kernels.upload import upload


@pytest.mark.parametrize("x", [np.arange(6).reshape(2, 3), np.zeros(0, dtype=np.float32), np.array([True, False])])
def test_is_the_array(x):
    found = upload(x, torch.device("cpu"))
    assert found.shape == x.shape and found.numpy().dtype == x.dtype and (found.numpy() == x).all()


@pytest.mark.gpu
def test_on_a_gpu_the_host_does_not_wait():
    torch.ones(1, device="cuda").sum().item()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = upload(np.arange(1000), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == list(range(1000))
