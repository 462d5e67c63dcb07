"""Preferences of a judge for DPO: of a prompt's answers by the policy as it is, the best and the worst are a pair."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from patarm_core.pairs import Pair, pair_to_json, read_pairs
from patarm_core.policy_rows import PolicyPrompt
from rollout.contexts import read_text
from trainer.config import Recipe
from trainer.identity import difference
from trainer.learner import Learner
from trainer.mistakes import Halt
from trainer.pair_stage import PairObjective
from trainer.policy import Answer, PolicyReplica, PromptSampling, draw_answers
from trainer.run_folder import RunFolder, write_text
from trainer.token_tree import TokenTree, room

FILE = "judged_pairs.jsonl"  # in the run's data/
IDENTITY = "judged_pairs_identity.json"  # beside it: of the run that made them


def refuse_pairs_of_another_run(folder: RunFolder) -> None:
    """As `refuse_another_run` of checkpoints: the pairs are there before the first of these. Reads only.

    Raises:
        ValueError: one line; the pairs are of another judge, model, tokenizer, recipe or data.
    """
    file, of = folder.path / "data" / FILE, folder.path / "data" / IDENTITY
    if not file.is_file() or not of.is_file():  # pairs of an older version do not say
        return
    try:
        saved = json.loads(read_text(of))
    except json.JSONDecodeError:
        raise ValueError(f"{of}: cannot be read; without {FILE} and it, the run makes both anew") from None
    if told := difference(saved, folder.identity):
        raise ValueError(f"{file}: cannot be resumed from: {told}")


def judged_pairs(
    objective: PairObjective,
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    prompts: Sequence[PolicyPrompt],
    replica: PolicyReplica,
) -> list[Pair]:
    """The pairs of the prompts whose answers the judge tells apart, drawn from the directory `model`; on every rank.

    They are written to the run's folder, from where a run that resumes takes them.

    Raises:
        Halt: there are none.
    """
    world, file = replica.world, folder.path / "data" / FILE
    text = world.gather(read_text(file) if world.is_main and file.is_file() else "")[0]
    if not text:
        learner = Learner(model, recipe.model, recipe.dpo.optim, 1, world)
        sampling = PromptSampling(
            n=recipe.dpo.num_answers, max_tokens=recipe.rollout.max_completion_tokens, stream=("prefer", recipe.seed)
        )
        engine = replica.refreshed(learner)
        _, _, found = draw_answers(
            engine, replica.shared, prompts, sampling, replica.examiner, progress="answers to be preferred"
        )
        most = learner.decoder.config.max_position_embeddings
        pairs, without = [], Counter()
        for prompt in prompts:
            pair = preferred(prompt, found[prompt.key])
            if isinstance(pair, Pair) and not _fits(objective, recipe, pair, most):
                pair = "too long"
            if isinstance(pair, Pair):
                pairs.append(pair)
            else:
                without[pair] += 1
        told = ", ".join(f"{why} {num}" for why, num in without.items()) or "none"
        if not pairs:
            raise Halt(f"dpo: the reward prefers no answer to another; prompts without a pair: {told}")
        text = "".join(pair_to_json(pair) + "\n" for pair in pairs)
        if world.is_main:
            print(f"dpo: pairs of {len(pairs)} of {len(prompts)} prompts; without one: {told}", flush=True)
            write_text(file.with_name(IDENTITY), json.dumps(folder.identity))
            write_text(file, text)  # last: with it, the pairs are there
    # Not `splitlines`: JSON lets U+2028 and its like stand in a text, and a policy writes what it likes.
    return read_pairs(text.split("\n"), str(file), [prompt.task for prompt in prompts])


def preferred(prompt: PolicyPrompt, answers: Sequence[Answer]) -> Pair | str:
    """Best and worst by their scores, of equal ones the first; or why there are none.

    A cut answer has no end that could be learned: it may be the worst, and never the best. A blank one is neither, as
    no pair may hold it.
    """
    scored = [answer for answer in answers if answer.scored.score is not None and answer.text.strip()]
    whole = [answer for answer in scored if not answer.is_cut]
    if len(scored) < 2 or not whole:
        return "fewer than two scores, or all cut"
    best = max(whole, key=lambda answer: answer.scored.score)
    worst = min(scored, key=lambda answer: answer.scored.score)
    if best.scored.score <= worst.scored.score or best.text == worst.text:
        return "equal scores"
    return Pair(prompt.prompt, best.text, worst.text, prompt.task, prompt.source, prompt.id)


def _fits(objective: PairObjective, recipe: Recipe, pair: Pair, max_positions: int) -> bool:
    leaves = objective.leaves(pair)
    num_tokens = TokenTree.of(leaves, recipe.model.layout == "tree").num_tokens
    limit = room(objective.config.tokens_per_micro_batch)
    return max(len(leaf.path) for leaf in leaves) <= max_positions and num_tokens <= limit
