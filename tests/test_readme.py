"""The README stays true: what it shows is run here or by .ci/run, and what it names exists."""

import json
import re
from pathlib import Path

import pytest

from patarm_core.benchmarks.ifeval import read_instructions
from patarm_core.fields import Fields
from patarm_core.pairs import read_choice_judgments, read_judgments, read_pairs
from patarm_core.policy_rows import PolicyPrompt
from patarm_core.rubrics import default_rubrics, parse_rubrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^    .*\n)+", README, re.M)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_examples_give_what_they_say(example):
    code, expected = example.rstrip().rsplit("\n# ", 1)
    *setup, last = code.rstrip().split("\n")
    names: dict = {}
    exec("\n".join(setup), names)
    assert repr(eval(last, names)) == expected


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"^[A-Z_]{6,}$", README, re.M) == []


def test_data_examples_are_read_as_they_stand():
    *rows, of_policy = [line for line in COMMANDS if line.startswith("{")]
    tasks = default_rubrics().tasks
    assert [json.loads(row).keys() >= {"prompt", "task"} for row in rows] == [True] * 3
    read_pairs(rows[:1], "README.md", tasks)
    read_judgments(rows[1:2], "README.md", tasks)
    read_choice_judgments(rows[2:], "README.md", tasks)
    prompt = PolicyPrompt.of(Fields(json.loads(of_policy)), "README.md")
    assert read_instructions(Fields(prompt.checks))[0].check("Assam and Darjeeling")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:[a-z_]+/)+[a-z0-9_]+\.(?:py|toml|json|md|png)", README))))
def test_files_named_in_the_readme_exist(path):
    # What a run makes is not in the repository.
    assert (ROOT / path).is_file() or path.startswith("runs/")


def test_the_rubric_example_is_read_as_it_stands():
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert parse_rubrics(example, "README.md").tasks == ("geography",)


def test_make_targets_and_folders_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", "\n".join(COMMANDS)):
        assert f"\n{target}:" in makefile
    for folder in re.findall(r"^\| `([a-z_]+)/` \|", README, re.M):
        assert (ROOT / folder).is_dir()


def test_commands_are_run_by_ci_or_by_a_test():
    """.ci/run runs every command in a shortened form; recipes for real weights run in tests/trainer/test_recipes.py."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    recipes_run = (ROOT / "tests" / "trainer" / "test_recipes.py").read_text(encoding="utf-8")
    shown = [line for line in COMMANDS if line.startswith(("make", ".venv/bin/"))]
    assert len(shown) >= 8
    for command in shown:
        if "torchrun" in command:
            assert re.search(r"trainer/recipes/\w+\.toml", command)[0] in recipes_run
        else:
            assert re.split(r" (?:ARGS|--)", command)[0] in ci


def test_the_commands_that_a_quickstart_ends_with_are_those_of_the_readme():
    from trainer.run import REAL_WEIGHTS

    commands = [" ".join(line.split()) for line in REAL_WEIGHTS.replace("\\\n", " ").splitlines()[1:]]
    assert len(commands) == 2
    shown = [" ".join(command.split()) for command in COMMANDS]
    assert [command for command in commands if f".venv/bin/{command}" not in shown] == []
