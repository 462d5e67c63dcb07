"""Moments on the host change no bit, and come back from a checkpoint."""

import pytest
import torch

from rollout.weights import full_tensors
from tests.tiny_runs import groups, save_checkpoint
from trainer.checkpoint import restore_
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.learner import Learner
from trainer.offload import OffloadedAdamW
from trainer.policy_loss import VALUES, PolicyLoss

POLICY = PolicyLoss(GrpoConfig(kl_coef=0.0), None)


@pytest.fixture
def new_learner(tiny_judge, one_process):
    def new(cpu_offload: bool) -> Learner:
        optim = OptimConfig(lr=1e-3, schedule="cosine", weight_decay=0.01, cpu_offload=cpu_offload)
        return Learner(tiny_judge, ModelConfig(), optim, 8, one_process)

    return new


def advance(learner: Learner, steps: range) -> dict[str, torch.Tensor]:
    for step in steps:
        learner.update(groups(3, seed=step), POLICY, 64, step, VALUES)
    return {name: tensor.clone() for name, tensor in full_tensors(learner.decoder)}


def moments(learner: Learner) -> list[torch.Tensor]:
    state = [learner.optimizer.state[p] for p in learner.decoder.parameters()]
    return [entry[name].full_tensor().clone() for entry in state for name in ("exp_avg", "exp_avg_sq")]


def all_equal(found, expected) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_it_is_adamw_to_the_bit(new_learner):
    ours, plain = new_learner(True), new_learner(False)
    assert type(ours.optimizer) is OffloadedAdamW
    assert type(plain.optimizer) is torch.optim.AdamW
    weights = advance(ours, range(4))
    assert all_equal(list(weights.values()), list(advance(plain, range(4)).values()))
    assert all_equal(moments(ours), moments(plain))


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(True, True), (False, True), (True, False)])
def test_a_checkpoint_does_not_know_where_the_moments_were(new_learner, one_process, tmp_path, saved_by, loaded_by):
    learner = new_learner(saved_by)
    advance(learner, range(3))
    save_checkpoint(tmp_path, learner, 3, one_process)
    again = new_learner(loaded_by)
    assert restore_(tmp_path, again, {}, one_process) == 3
    assert all_equal(moments(again), moments(learner))
    ends = [list(advance(it, range(3, 5)).values()) for it in (learner, again)]
    assert all_equal(*ends)


@pytest.mark.gpu
def test_between_steps_the_moments_are_on_the_host(new_learner):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    learner = new_learner(True)
    advance(learner, range(2))
    places = {learner.optimizer.state[p][name].device.type for p in learner.decoder.parameters() for name in
              ("exp_avg", "exp_avg_sq")}  # fmt: skip
    assert places == {"cpu"}
