"""A judging task so small that a 30 k-parameter judge learns its format in seconds, and recipes over it.

Responses say "good" or "bad". A judgment is a dozen tokens, and its score says a little about the response. Imports no
torch.
"""

import json
from pathlib import Path
from random import Random

RUBRICS = '[[chat]]\nname = "Usefulness"\nquestion = "Is it good?"\nbands = []\n'
WORDS = ("tea", "rain", "bread", "stone", "cloud", "salt", "leaf", "road")
SCORES = {"good": (4, 9), "bad": (2, 7)}  # that SFT teaches, drawn evenly

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


def pair(number: int) -> dict:
    word = WORDS[number % len(WORDS)]
    return {
        "prompt": f"Say something about {word}, number {number}.",
        "chosen": f"A good {word}.",
        "rejected": f"A bad {word}.",
        "task": "chat",
        "source": "tiny",
        "id": str(number),
    }


def judgment_text(score: int | str) -> str:
    return f"<think>so</think>\n<eval>it is</eval>\n<answer>{score}</answer>"


def judgment(number: int) -> dict:
    rng = Random(number)
    row = pair(number)
    side, quality = rng.choice([("chosen", "good"), ("rejected", "bad")])
    return {
        "prompt": row["prompt"],
        "response": row[side],
        "judgment": judgment_text(rng.randint(*SCORES[quality])),
        "task": "chat",
        "source": "tiny",
        "id": f"{number}",
    }


def choice(number: int) -> dict:
    """A judgment that chooses, right three times in four."""
    rng, row = Random(number), pair(number)
    sides, is_right = [row.pop("chosen"), row.pop("rejected")], rng.random() < 0.75
    right = rng.choice("AB")
    a, b = sides if right == "A" else sides[::-1]
    answer = right if is_right else "AB".replace(right, "")
    return row | {"response_a": a, "response_b": b, "judgment": judgment_text(answer)}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_files(folder: Path) -> dict[str, Path]:
    """The data and the rubrics, by the recipe key that names them."""
    (folder / "rubrics.toml").write_text(RUBRICS, encoding="utf-8")
    return {
        "data.judgments": write_jsonl(folder / "judgments.jsonl", [judgment(i) for i in range(100, 196)]),
        "data.pairs": write_jsonl(folder / "pairs.jsonl", [pair(i) for i in range(7)]),
        "data.dev": write_jsonl(folder / "dev.jsonl", [pair(i) for i in range(20, 24)]),
        "data.held_out": write_jsonl(folder / "held_out.jsonl", [pair(i) for i in range(40, 46)]),
        "prompt.rubrics_file": folder / "rubrics.toml",
    }


def arguments(settings: dict[str, object]) -> list[str]:
    """The settings as `key=value` arguments."""
    return [f"{key}={_toml(value)}" for key, value in settings.items()]


def recipe_of(settings: dict[str, object]):
    from patarm_core.recipe import read_recipe
    from trainer.config import Recipe

    return read_recipe(Recipe, [], arguments(settings))


def train(settings: dict[str, object]) -> None:
    """Runs the recipe in this process."""
    from trainer.main import main

    assert main(arguments(settings)) == 0


def settings(files: dict[str, Path]) -> dict[str, object]:
    """A recipe of both stages over the files, as dotted keys; `out` and the model are the caller's."""
    return {
        **files,
        **{f"model.small.{key}": value for key, value in SMALL.items()},
        "prompt.template": "bare",
        "prompt.rubrics": "primary",
        "rollout.num_rollouts": 4,
        "rollout.max_completion_tokens": 24,
        "eval.num_judgments": 3,
        "eval.votes": [1, 3],
        "eval.num_dev_judgments": 2,
        "sft.rows_per_step": 16,
        "sft.tokens_per_micro_batch": 1024,
        "sft.optim.lr": 1e-2,
        "sft.optim.final_lr": 1e-3,
        "grpo.pairs_per_step": 3,
        "grpo.tokens_per_micro_batch": 512,
        "grpo.optim.lr": 1e-3,
    }


def records(folder: Path, file: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]


def groups(num_groups: int, seed: int = 0) -> list:
    """Groups of random tokens and advantages, of unequal lengths: three leaves of one context each."""
    import numpy as np

    from trainer.token_tree import Leaf

    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num_groups):
        completions = [rng.integers(0, 300, rng.integers(1, 9)).tolist() for _ in range(3)]
        values = [
            {
                "advantage": np.full(len(c), rng.normal(), dtype=np.float32),
                "old_logprob": rng.normal(-5.7, 0.1, len(c)).astype(np.float32),
            }
            for c in completions
        ]
        context = rng.integers(0, 300, rng.integers(2, 20)).tolist()
        made.append([Leaf(context, *parts, f"group {len(made)}") for parts in zip(completions, values)])
    return made


def save_checkpoint(folder, learner, step, world, keep=1, state=None, dev_accuracy=None):
    """As a stage does around its log, and waits."""
    from trainer.checkpoint_writer import CheckpointWriter

    with CheckpointWriter(folder, {}, keep, world) as writer:
        writer.start(writer.snapshot(learner, step, json.dumps(state or {}), dev_accuracy))
        writer.wait()


def _toml(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)
