"""Stage `rlhf`: GRPO of a policy on prompts; a judge, a reward model or a checker scores its answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from patarm_core import advantages
from patarm_core.loss_weights import StepCounts, token_weight
from patarm_core.overlong import overlong_reward
from patarm_core.policy_rows import PolicyPrompt
from patarm_core.prompts import flatten
from patarm_core.sampling import PairRandomSampler
from patarm_core.unscored import filled
from rollout.params import Completion
from trainer.balance import my_share
from trainer.config import Recipe, RlhfConfig
from trainer.learner import Learner, sharded_decoder
from trainer.mistakes import Halt
from trainer.policy import Answer, PolicyReplica, PromptSampling, answer_metrics, draw_answers
from trainer.policy_loss import PolicyLoss, policy_leaf, update_on
from trainer.run_folder import RunFolder
from trainer.stage import count_steps, run_steps
from trainer.token_tree import Leaf

STAGE = "rlhf"

Group = list[tuple[float, float] | None]  # (advantage, weight of a token) of a prompt's answers; None: left out


def step_groups(
    answers: Sequence[Sequence[Answer]], config: RlhfConfig, max_tokens: int
) -> tuple[list[Group], dict[str, float]]:
    """Advantages and token weights of a whole step's answers, prompt by prompt, and metrics.

    R = the score + R_length (`overlong_buffer_tokens`). Answers without a score go by `config.unscored`; by the rule
    "mean" they have advantage 0 wherever the baseline is the group's.

    Args:
        answers: scored, n to each prompt.
        max_tokens: the most that an answer may have.

    Raises:
        Halt: none of them has a score.
    """
    scores = [[answer.scored.score for answer in group] for group in answers]
    if all(score is None for group in scores for score in group):
        raise Halt(f"{STAGE}: no answer of the step has a score; the first: {answers[0][0].scored.error}")
    rewards = filled(scores, config.unscored)
    kept = [(g, i) for g, group in enumerate(rewards) for i, reward in enumerate(group) if reward is not None]
    if not kept:
        raise Halt(f'{STAGE}: no prompt of the step has two answers with a score, and rlhf.unscored = "drop"')
    parts = [[rewards[g][i] for g, i in kept]]
    lengths = [answers[g][i].num_tokens for g, i in kept]
    if config.overlong_buffer_tokens:
        parts.append([overlong_reward(length, max_tokens, config.overlong_buffer_tokens) for length in lengths])
    of_group = [g for g, _ in kept]
    totals = advantages.totals(parts)
    advantage = advantages.estimate(config.advantage, totals, of_group)
    counts = StepCounts.of(lengths)
    groups: list[Group] = [[None] * len(group) for group in answers]
    for (g, i), value, length in zip(kept, advantage, lengths, strict=True):
        # A mean in floating point is not quite the mean; what has no score teaches nothing.
        is_mean = scores[g][i] is None and config.advantage != "reinforce++" and not config.overlong_buffer_tokens
        groups[g][i] = 0.0 if is_mean else value, token_weight(config.normalization, length, counts, max_tokens)
    num_teaching = len({g for g, value in zip(of_group, advantage, strict=True) if value})
    return groups, {
        "reward": fmean(totals),
        "zero_advantage_groups": len(answers) - num_teaching,
        "zero_advantage_share": 1 - num_teaching / len(answers),
        "unscored_groups": sum(all(score is None for score in group) for group in scores),
    }


def to_tree(prompt: PolicyPrompt, context: list[int], completions: Sequence[Completion], group: Group) -> list[Leaf]:
    """The answers to a prompt that are trained on."""
    name = f"prompt {prompt.id} of {prompt.source}"
    return [
        policy_leaf(context, completion, *item, name)
        for completion, item in zip(completions, group, strict=True)
        if item is not None
    ]


def run_rlhf(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    prompts: Sequence[PolicyPrompt],
    dev: Sequence[PolicyPrompt],
    replica: PolicyReplica,
) -> Learner:
    """Trains from the Hugging Face directory `model`, which is also the reference of the KL penalty."""
    config, world, shared = recipe.rlhf, replica.world, replica.shared
    sampler = PairRandomSampler(len(prompts), config.prompts_per_step, recipe.seed)
    num_updates = count_steps(config, sampler) * config.inner_epochs
    learner = Learner(model, recipe.model, config.optim, num_updates, world)
    reference = sharded_decoder(model, recipe.model, world).requires_grad_(False) if config.kl_coef else None
    loss, max_tokens = PolicyLoss(config, reference), recipe.rollout.max_completion_tokens
    for step in run_steps(STAGE, config, sampler, learner, folder, replica, dev, recipe, {"rollout": shared}):
        phase = step.watch.phase
        with phase("step_s"):
            with phase("sync_s"):
                engine = replica.refreshed(learner)
            some = [prompts[i] for i in sampler.global_step(step.index)]
            sampling = PromptSampling(
                n=recipe.rollout.num_rollouts, max_tokens=max_tokens, stream=("rlhf", recipe.seed, step.index)
            )
            drawn, spread, found = draw_answers(engine, shared, some, sampling, replica.examiner, phase)
            with phase("reward_s"):
                answers = [found[prompt.key] for prompt in some]
                groups, of_rewards = step_groups(answers, config, max_tokens)
                mine = shared.of_my_share(
                    drawn, lambda trees: my_share(trees, learner.decoder.config, recipe.model.layout, world)
                )
                trees = [to_tree(some[i], *contexts, *sides, groups[i]) for i, (contexts, sides) in mine.items()]
            with phase("update_s"):
                metrics = update_on([tree for tree in trees if tree], learner, loss, config, step.index)
        of_answers = answer_metrics(answers)
        names = {"accuracy": "checker_score", "all_right": "checker_all_right"}
        metrics |= {names.get(name, name): value for name, value in of_answers.items()} | of_rewards
        metrics |= {"prompts_by_rank": spread["pairs_by_rank"], "rollout_idle_share": spread["rollout_idle_share"]}
        metrics["tokens_per_s"] = metrics["num_tokens"] / step.watch.seconds["step_s"]
        step.metrics = metrics
        step.samples = [
            {
                "stage": STAGE, "step": step.index + 1, "source": prompt.source, "id": prompt.id, "side": "answer",
                "prompt": flatten(prompt.prompt), "response": group[0].text, "judgment": group[0].scored.text or "",
                "score": None if group[0].scored.score is None else float(group[0].scored.score),
                "problem": group[0].scored.error, "checked": group[0].checked,
            }
            for prompt, group in list(zip(some, answers, strict=True))[: config.num_sample_prompts]
        ]  # fmt: skip
        checked = f" checker {metrics['checker_score']:.0%}" if "checker_score" in metrics else ""
        step.note = f"reward {metrics['reward']:.2f}{checked} tokens {metrics['completion_tokens']:.0f}"
    return learner
