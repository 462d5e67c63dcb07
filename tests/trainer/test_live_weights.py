"""The engine judges with the trainer's weights of now, shared or copied, and never with others."""

import pytest
import torch

from tests.tiny_runs import groups, recipe_of, settings
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.inputs import load_inputs
from trainer.learner import Learner
from trainer.live_weights import refuse_stale_weights
from trainer.mistakes import Halt
from trainer.policy_loss import VALUES, PolicyLoss
from trainer.replica import JudgeReplica

OPTIM = OptimConfig(lr=3e-2)
POLICY = PolicyLoss(GrpoConfig(kl_coef=0.0), None)


@pytest.fixture
def new_judge(tiny_files, tiny_judge, one_process):
    """(replica, learner, dev pairs) in the given type."""

    def make(dtype: str):
        recipe = recipe_of(
            settings(tiny_files) | {"out": "x", "model.path": tiny_judge, "model.dtype": dtype, "grpo.dev_every": 1}
        )
        inputs = load_inputs(recipe, str(tiny_judge))
        replica = JudgeReplica(recipe, inputs.model_config, inputs.contexts, one_process)
        return replica, Learner(tiny_judge, ModelConfig(dtype=dtype), OPTIM, 9, one_process), inputs.data.dev

    return make


def advance(learner: Learner, step: int) -> None:
    learner.update(groups(3, seed=step), POLICY, 64, step, VALUES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_every_update_an_old_engine_judges_as_a_new_one(new_judge, dtype):
    replica, learner, dev = new_judge(dtype)
    seen = []
    for step in range(3):
        seen.append([judged.chosen_texts + judged.rejected_texts for judged in replica.judge(learner, dev, 2)])
        fresh, _, _ = new_judge(dtype)
        assert [j.chosen_texts + j.rejected_texts for j in fresh.judge(learner, dev, 2)] == seen[-1]
        advance(learner, step)
    assert len({str(texts) for texts in seen}) == 3  # the updates told


def test_one_process_in_float32_keeps_no_second_copy(new_judge):
    replica, learner, _ = new_judge("float32")
    engine = replica.refreshed(learner)
    for mine, trained in zip(engine.decoder.parameters(), learner.decoder.parameters(), strict=True):
        assert mine.data_ptr() == trained.to_local().data_ptr()
    assert engine.decoder.lm_head.weight is engine.decoder.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_changed_bit_is_found(new_judge, one_process, dtype):
    replica, learner, _ = new_judge("bfloat16")  # copies, which can differ
    decoder = replica.refreshed(learner).decoder.to(getattr(torch, dtype))
    learner.copy_weights_to_(decoder)
    refuse_stale_weights(decoder, learner.decoder, one_process)
    norm = decoder.layers[1].mlp.up_proj.weight
    bits = norm.detach().view(torch.int32 if dtype == "float32" else torch.int16)
    bits[3, 5] ^= 1
    with pytest.raises(Halt, match=r"the engine of rank 0 does not run .* \(layers.1.mlp.up_proj.weight and 0 more"):
        refuse_stale_weights(decoder, learner.decoder, one_process)


def test_weights_of_before_an_update_are_found(new_judge, one_process):
    replica, learner, _ = new_judge("bfloat16")
    decoder = replica.refreshed(learner).decoder
    advance(learner, 0)
    with pytest.raises(Halt, match="does not run the trainer's weights"):
        refuse_stale_weights(decoder, learner.decoder, one_process)
