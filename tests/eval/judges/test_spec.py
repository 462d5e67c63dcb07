"""The options that name a judge: each judge opens, and what cannot be is told in one line."""

import argparse

import pytest

from eval.judges.judge import Question, mean_of
from eval.judges.spec import BASELINES, add_judge_options, judge_form, open_judge


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_judge_options(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def endpoint(*more):
    return options("--endpoint", "http://localhost:1/v1", "--endpoint-model", "m", *more)


def test_a_directory_is_a_patarm_judge(tiny_judge, tiny_files):
    judge = open_judge(
        options("--model", tiny_judge, "--rubrics", "primary", "--template", "bare", "--well-formed", "--rubrics-file",
                tiny_files["prompt.rubrics_file"], "--max-completion-tokens", 40)
    )  # fmt: skip
    asked = [Question(id="0", prompt="Say tea.", responses=("A good tea.",))]
    ((_, drawn),) = judge.judge(asked, 2)
    assert judge.mode == "pointwise" and mean_of(drawn, 2) is not None


@pytest.mark.parametrize("name", ["patarm", "general", *BASELINES])
def test_every_generative_judge_opens_on_an_endpoint(name):
    judge = open_judge(endpoint("--judge", name, "--temperature", 0.25, "--max-tries", 2))
    assert judge.form.name == name and judge.mode == next(iter(judge.form.asks))
    assert judge.sampling.temperature == 0.25 and judge.sampling.max_tokens == judge.form.sampling.max_tokens


def test_the_key_is_read_from_the_variable_that_is_named():
    judge = open_judge(endpoint("--api-key-env", "MY_KEY"), {"MY_KEY": " sk-1\n"})
    assert judge.client._api_key == "sk-1" and "sk-1" not in str(judge.fingerprint)
    assert open_judge(endpoint(), {"OPENAI_API_KEY": "sk-1"}).client._api_key == ""  # nobody else's key goes anywhere


def test_a_server_that_has_moved_is_the_judge_it_was_and_another_model_is_not():
    here, moved = open_judge(endpoint()), open_judge(endpoint("--endpoint", "https://elsewhere:81/v2"))
    assert here.client.path != moved.client.path and here.fingerprint == moved.fingerprint
    assert open_judge(endpoint("--endpoint-model", "other")).fingerprint != here.fingerprint


def test_forms_that_ask_alike_and_read_otherwise_are_told_apart():
    """The bare template asks for nothing, so that `adaptive` and `primary` differ in what is drawn and read alone."""
    forms = {rubrics: judge_form("patarm", rubrics, "bare") for rubrics in ("adaptive", "primary", "generated")}
    asked = Question(id="0", prompt="p", task="math", responses=("a",))
    assert forms["adaptive"].turns("pointwise", asked) == forms["primary"].turns("pointwise", asked)
    assert len({form.fingerprint("pointwise") for form in forms.values()}) == 3


def test_a_published_template_takes_the_place_of_ours(tmp_path):
    file = tmp_path / "judge.toml"
    file.write_text('system = "S"\npairwise = "Q {prompt} 1 {response_a} 2 {response_b}"\nopening = "<think>"\n')
    judge = open_judge(endpoint("--judge", "rm-r1", "--prompt-file", file))
    turns = judge.form.turns("pairwise", Question(id="0", prompt="p", responses=("a", "b")))
    assert [turn["content"] for turn in turns] == ["S", "Q p 1 a 2 b"] and judge.form.opening == "<think>"
    assert judge.fingerprint != open_judge(endpoint("--judge", "rm-r1")).fingerprint


@pytest.mark.parametrize(
    "given, message",
    [
        (options(), "name one judge"),
        (options("--model", "x", "--endpoint", "y"), "name one judge"),
        (options("--model", "nowhere"), "no such file"),
        (options("--endpoint", "http://x"), "--endpoint-model: missing"),
        (
            endpoint("--judge", "judgelrm", "--mode", "pointwise"),
            "has no pointwise judgments; --mode pairwise is right",
        ),
        (endpoint("--judge", "scalar"), "reads the weights themselves"),
        (options("--model", "x", "--judge", "scalar", "--mode", "pairwise"), "--mode pointwise is right"),
        (endpoint("--api-key-env", "NO_KEY"), "--api-key-env NO_KEY"),
        (endpoint("--endpoint-extra", "[1]"), "--endpoint-extra: is a list"),
        (endpoint("--requests-per-minute", "0"), "--requests-per-minute 0.0: must be above 0"),
        (endpoint("--concurrency", "0"), "--concurrency 0"),
        (endpoint("--max-tries", "0"), "--max-tries must be at least 1"),
        (endpoint("--prompt-file", "x.toml"), "is for a baseline"),
        (endpoint("--judge", "r3", "--prompt-file", "nowhere.toml"), "nowhere.toml: no such file"),
        (endpoint("--max-completion-tokens", "0"), "--max-completion-tokens must be at least 1"),
    ],
)
def test_mistakes_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as told:
        open_judge(given, {})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("pairwise = ", "x.toml: "),
        ('pairwise = "{prompt} {response_a}"', r"x.toml: pairwise: has no \{response_b\}"),
        ('pointwise = "{prompt} {response}"', "x.toml: pointwise: unknown field"),
        ('system = "S"', "x.toml: has no template; expected pairwise"),
    ],
)
def test_a_template_file_that_is_wrong_is_told(text, message, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_judge(endpoint("--judge", "rrm", "--prompt-file", tmp_path / "x.toml"))
