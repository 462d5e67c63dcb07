"""Keeps test runs small and repeatable. Imports no torch: the tests of `patarm_core` run in seconds without it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Read by torch when it is first imported, by us or by a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# A thread that spins at a barrier takes the core that the other one waits for, many times over on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Without a GPU, Triton kernels run under the interpreter, on CPU tensors. Triton reads this when it is imported.
HAS_GPU = Path("/dev/nvidiactl").exists()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("patarm", deadline=None)
settings.register_profile("patarm-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("patarm-ci" if os.environ.get("CI") else "patarm")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def triton_device():
    """Where Triton kernels run in this process: a GPU, or the CPU by way of the interpreter."""
    import torch

    from kernels.jit import INTERPRETED

    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs Triton with its interpreter (TRITON_INTERPRET=1), or a CUDA device")
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """The data of tests/tiny_runs.py, by the recipe key that names each file."""
    from tests.tiny_runs import write_files

    return write_files(tmp_path_factory.mktemp("tiny_files"))


@pytest.fixture(scope="session")
def tiny_judge(tiny_files, tmp_path_factory):
    """A Hugging Face directory: a judge that has learned the format, and that scores good above bad now and then."""
    from tests.tiny_runs import settings, train

    out = tmp_path_factory.mktemp("tiny_judge") / "run"
    train(settings(tiny_files) | {"out": out, "stages": ["sft"], "sft.steps": 60, "data.held_out": ""})
    return out / "models" / "sft"


@pytest.fixture
def one_process():
    """A process group of one."""
    from trainer.distributed import world

    with world() as alone:
        yield alone
