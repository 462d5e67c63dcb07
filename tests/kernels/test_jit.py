"""Which configuration a device takes."""

import pytest
import torch

from kernels.jit import architecture, cdiv, next_power_of_2


@pytest.mark.parametrize(
    "capability, column",
    [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_90"), ((12, 0), "sm_80")],
)
def test_the_column_of_a_device(capability, column, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert architecture(torch.device("cuda")) == column


def test_an_old_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"need compute capability 8\.0 or later, cuda has 7\.5"):
        architecture(torch.device("cuda"))


def test_whole_numbers():
    assert [next_power_of_2(n) for n in (0, 1, 2, 3, 4, 5, 128, 129)] == [1, 1, 2, 4, 4, 8, 128, 256]
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
