"""Recipes as a user writes them: those that are shipped, and what is said about wrong ones."""

from pathlib import Path

import pytest

from patarm_core.par import constant, graded
from patarm_core.recipe import RecipeError, read_recipe, to_toml, with_bases
from rollout.contexts import read_text
from trainer.config import MarginConfig, Recipe
from trainer.curation.config import CurateRecipe

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "trainer" / "recipes").glob("*.toml"))


def read(*overrides, text='out = "runs/x"\n'):
    return read_recipe(Recipe, [("recipe.toml", text)], overrides)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_shipped_recipe_reads_and_comes_back_from_its_own_toml(file):
    kind = CurateRecipe if file.name.startswith("curate") else Recipe
    recipe = read_recipe(kind, with_bases(str(file), read_text))
    assert read_recipe(kind, [("resolved", to_toml(recipe))]) == recipe


def test_the_quickstart_is_among_the_shipped_recipes():
    assert "quickstart.toml" in [file.name for file in SHIPPED]


def test_every_value_that_is_not_a_default_comes_back_from_toml():
    recipe = read(
        "seed=3", "stages=['grpo']", "model.dtype=bfloat16", "data.pairs=a b\"c.jsonl", "eval.votes=[1, 2, 4]",
        "grpo.optim.betas=[0.8, 0.99]", "grpo.margin.kind=constant", "rollout.num_rollouts=16", "sft.optim.lr=1",
    )  # fmt: skip
    assert recipe.data.pairs == 'a b"c.jsonl'
    assert recipe.sft.optim.lr == 1.0
    assert read_recipe(Recipe, [("resolved", to_toml(recipe))]) == recipe


def test_the_defaults_are_those_of_the_paper_for_8b():
    recipe = read()
    assert (recipe.sft.optim.lr, recipe.sft.optim.final_lr, recipe.sft.rows_per_step) == (1.5e-6, 1.5e-7, 512)
    assert (recipe.grpo.optim.lr, 2 * recipe.grpo.pairs_per_step) == (5e-7, 256)  # a batch counts both sides
    assert (recipe.grpo.clip_low, recipe.grpo.clip_high, recipe.grpo.inner_epochs) == (0.2, 0.2, 1)
    assert (recipe.grpo.kl_coef, recipe.grpo.group, recipe.rollout.temperature) == (0.001, "side", 1.0)
    assert (recipe.grpo.kl_estimator, recipe.grpo.dual_clip) == ("k3", 0)
    assert recipe.grpo.margin.build() == graded(2.0, 1.2, 1.4)
    assert MarginConfig(kind="constant").build() == constant(1.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('out = "x"\nseeed = 1\n', "recipe.toml: unknown key 'seeed'; the nearest is 'seed'"),
        ('out = "x"\n[grpo]\npair_per_step = 1\n', "recipe.toml: unknown key 'grpo.pair_per_step'; the nearest is "
         "'grpo.pairs_per_step'"),
        ('out = "x"\n[grpo.optim]\nlr = "fast"\n', 'recipe.toml: grpo.optim.lr: expected a number, got "fast"'),
        ('out = "x"\nstages = ["stf"]\n', 'recipe.toml: stages: expected a list, each item one of "sft", "grpo", '
         '"bt", "dpo", "rlhf", got ["stf"]'),
        ("seed = 1\n", "recipe.toml: missing out; required, as there is no default"),
        ('out = "x"\nseed = \n', "recipe.toml:2: not TOML: Invalid value"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_told_with_the_file_the_key_and_what_is_right(text, message):
    with pytest.raises(RecipeError) as error:
        read(text=text)
    assert str(error.value) == message


def test_a_mistyped_override_names_the_nearest_key():
    with pytest.raises(RecipeError) as error:
        read("rollout.num_rollout=4")
    assert str(error.value) == (
        "command line: unknown key 'rollout.num_rollout'; the nearest is 'rollout.num_rollouts'"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.votes=[1, 9]", "[eval]: votes=[1, 9] must be numbers from 1 to num_judgments=8"),
        ("eval.votes=[]", "[eval]: votes=[] must be numbers from 1 to num_judgments=8"),
        ("eval.num_dev_judgments=0", "[eval]: num_dev_judgments=0 must be at least 1"),
        ("data.label_noise=1.5", "[data]: label_noise=1.5 must be in [0, 1]"),
        ("data.embedded.num_rl_pairs=-1", "[data.embedded]: num_rl_pairs is negative: -1"),
        ("sft.optim.lr=0", "[sft.optim]: lr=0.0 must be positive"),
        ("sft.optim.lr=inf", "[sft.optim]: lr=inf must be positive"),
        ("grpo.optim.lr=-1e-6", "[grpo.optim]: lr=-1e-06 must be positive"),
        ("grpo.optim.betas=[0.9, 1.0]", "[grpo.optim]: betas=(0.9, 1.0) must be two numbers in [0, 1)"),
        ("grpo.optim.warmup_steps=-1", "[grpo.optim]: warmup_steps=-1 must be at least 0"),
        ("sft.rows_per_step=0", "[sft]: rows_per_step=0 must be at least 1"),
        ("sft.steps=-1", "[sft]: steps=-1 must be at least 0"),
        ("grpo.inner_epochs=0", "[grpo]: inner_epochs=0 must be at least 1"),
        ("grpo.kl_coef=-1", "[grpo]: kl_coef=-1.0 must be at least 0"),
        ("grpo.clip_low=1", "[grpo]: clip_low=1.0 must be in [0, 1)"),
        ("grpo.clip_high=-0.1", "[grpo]: clip_high=-0.1 must be at least 0"),
        ("grpo.dual_clip=1", "[grpo]: dual_clip=1.0 must be 0 or above 1"),
        ("grpo.dual_clip=-3", "[grpo]: dual_clip=-3.0 must be 0 or above 1"),
        ("grpo.refill_rounds=-1", "[grpo]: refill_rounds=-1 must be at least 0"),
        (
            "grpo.overlong_buffer_tokens=5000",
            "grpo.overlong_buffer_tokens=5000 is above rollout.max_completion_tokens=4096",
        ),
        ("grpo.importance_cap=0.5", "[grpo]: importance_cap=0.5 must be 0 or at least 1"),
        ("grpo.ratio=word", 'grpo.ratio: expected one of "token", "sequence", got "word"'),
        ("mode=both", 'mode: expected one of "pointwise", "pairwise", got "both"'),
        ("grpo.kl_estimator=k4", 'grpo.kl_estimator: expected one of "k1", "k2", "k3", got "k4"'),
        ("grpo.margin.low=2", "a graded margin reward needs threshold >= 0 and 0 <= low <= high, got "),
        ("rollout.max_completion_tokens=0", "[rollout]: max_completion_tokens=0 must be at least 1"),
        ("rollout.temperature=0", "[rollout]: temperature=0.0 must be positive"),
        ("rollout.temperature=0.7", "rollout.temperature=0.7 must be 1 with the stage grpo: the importance ratio is "),
        ("eval.temperature=-1", "[eval]: temperature=-1.0 must be at least 0"),
        ("rollout.num_rollouts=1", "a group baseline needs at least 2 rollouts per context, got num_rollouts=1"),
        ("model.small.hidden_size=0", "[model.small]: hidden_size=0 must be at least 1"),
        ("num_processes=-1", "num_processes=-1 must be at least 0"),
        ("out=''", "out is empty; it names the run's folder"),
    ],
)
def test_a_value_out_of_range_is_told_in_one_line(override, message):
    with pytest.raises(RecipeError) as error:
        read(override)
    assert message in str(error.value)
    assert str(error.value).startswith(("command line: ", "recipe.toml, command line: "))
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_together_are_told():
    with pytest.raises(RecipeError, match=r'refill_rounds=2: advantage = "reinforce\+\+" knows no groups'):
        read("grpo.refill_rounds=2", "grpo.advantage=reinforce++")
    assert read("grpo.refill_rounds=2", "grpo.advantage=reinforce++_baseline").grpo.refill_rounds == 2
    with pytest.raises(RecipeError, match="the embedded set has no pairwise judgments for the stage sft"):
        read("mode=pairwise", "data.source=embedded")
    with pytest.raises(RecipeError, match="needs at least 2 rollouts per context, got num_rollouts=1"):
        read("mode=pairwise", "rollout.num_rollouts=1", "grpo.group=pair")


def test_one_rollout_is_enough_where_the_baseline_is_the_steps():
    one = ("rollout.num_rollouts=1", "grpo.advantage=reinforce++")
    assert read(*one).rollout.num_rollouts == read(*one, "mode=pairwise").rollout.num_rollouts == 1
    policy = ("rollout.num_rollouts=1", "role=policy", 'stages=["rlhf"]', "rlhf.advantage=reinforce++")
    assert read(*policy).rollout.num_rollouts == 1
    # Another stage's estimator does not help, nor can a lone answer be kept or dropped by those beside it.
    for some in (one[:1], (one[0], "rlhf.advantage=reinforce++"), (*policy, "rlhf.unscored=drop"), policy[:3]):
        with pytest.raises(RecipeError, match="needs at least 2 rollouts per context, got num_rollouts=1"):
            read(*some)


def test_files_beside_the_embedded_source_are_refused_and_not_ignored():
    with pytest.raises(RecipeError, match=r'\[data\]: pairs: with source = "embedded" no file is read'):
        read("data.pairs=mine.jsonl", text='out = "x"\n[data]\nsource = "embedded"\n')


def test_the_temperature_of_evaluation_is_free():
    assert read("eval.temperature=0.6").eval.temperature == 0.6
    assert read("rollout.temperature=0.6", "stages=['sft']").rollout.temperature == 0.6


def test_one_judgment_a_side_is_a_group_when_both_sides_are():
    assert read("rollout.num_rollouts=1", "grpo.group=pair").rollout.num_rollouts == 1
