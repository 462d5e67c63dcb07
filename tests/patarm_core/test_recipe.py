import math
from dataclasses import dataclass, field
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.recipe import RecipeError, read_recipe, to_toml, with_bases


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    num_rollouts: int = 8
    temperature: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        if self.num_rollouts < 2:
            raise ValueError(f"a group baseline needs at least 2 rollouts, got num_rollouts={self.num_rollouts}")


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Noise:
    share: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: str
    optim: Optim
    stage: Literal["sft", "grpo"] = "grpo"
    is_resumed: bool = False
    rollout: Rollout = field(default_factory=lambda: Rollout(num_rollouts=4))
    noise: Noise | None = None
    note: Optional[str] = None  # noqa: UP045 (the older spelling must be read as well)
    layers: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=lambda: {"by": "us"})


BASE = ("base.toml", 'model = "Qwen3-8B"\n[optim]\nlr = 5e-7\n')


def test_what_is_not_said_keeps_its_default():
    assert read_recipe(Recipe, [BASE]) == Recipe(model="Qwen3-8B", optim=Optim(lr=5e-7))


def test_later_texts_and_overrides_win_key_by_key():
    more = ("more.toml", "[optim]\nwarmup_steps = 5\n[rollout]\ntemperature = 0.5\n[noise]\nshare = 1\n")
    recipe = read_recipe(Recipe, [BASE, more], ["optim.lr=1e-3", "noise.share=0.2", "optim.lr = 2"])
    assert recipe == Recipe(
        model="Qwen3-8B",
        optim=Optim(lr=2.0, warmup_steps=5),
        rollout=Rollout(num_rollouts=4, temperature=0.5),
        noise=Noise(share=0.2),
    )
    assert type(recipe.optim.lr) is float


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("model=Qwen3-14B", "model", "Qwen3-14B"),
        ('model="a b"', "model", "a b"),
        ("model=8", "model", "8"),
        ("model=true", "model", "true"),
        ("model=", "model", ""),
        ("model=a=b # c", "model", "a=b # c"),
        ("stage=sft", "stage", "sft"),
        ("is_resumed=true", "is_resumed", True),
        ("layers=[1, 2]", "layers", [1, 2]),
        ("note=2026-01-01", "note", "2026-01-01"),
        ('labels={run = "3"}', "labels", {"run": "3"}),
        ("labels.run=3", "labels", {"run": "3"}),
    ],
)
def test_an_override_is_toml_or_else_a_bare_string(override, name, value):
    assert getattr(read_recipe(Recipe, [BASE], [override]), name) == value


def test_a_dict_replaces_the_default_and_is_merged_between_texts():
    texts = [BASE, ("a.toml", '[labels]\na = "1"\nb = "1"\n'), ("b.toml", '[labels]\nb = "2"\n')]
    assert read_recipe(Recipe, texts).labels == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_rollouts = 16", "unknown key 'num_rollouts'; the nearest is 'rollout.num_rollouts'"),
        ("[rollout]\nnum_rollout = 16", "unknown key 'rollout.num_rollout'; the nearest is 'rollout.num_rollouts'"),
        ("[rollout]\nlr = 1.0", "unknown key 'rollout.lr'; the nearest is 'optim.lr'"),
        ("[noise]\nshre = 1", "unknown key 'noise.shre'; the nearest is 'noise.share'"),
        ('[optim]\nlr = "fast"', 'optim.lr: expected a number, got "fast"'),
        ("[optim]\nlr = nan", "optim.lr: expected a number, got nan"),
        ("[optim]\nlr = true", "optim.lr: expected a number, got true"),
        ("[optim]\nbetas = [0.9]", "optim.betas: expected a list of 2: a number, a number, got [0.9]"),
        ("[optim]\nwarmup_steps = 1.5", "optim.warmup_steps: expected an integer, got 1.5"),
        ("[rollout]\nnum_rollouts = true", "rollout.num_rollouts: expected an integer, got true"),
        ("[rollout]\nnum_rollouts = 8.0", "rollout.num_rollouts: expected an integer, got 8.0"),
        ("[rollout]\nstop = ['a', 1]", 'rollout.stop: expected a list, each item a string, got ["a", 1]'),
        ("is_resumed = 1", "is_resumed: expected true or false, got 1"),
        ("stage = 'rl'", 'stage: expected one of "sft", "grpo", got "rl"'),
        ("model = 8", "model: expected a string, got 8"),
        ("rollout = 8", "rollout: expected a table, got 8"),
        ("noise = 0.2", "noise: expected a table, got 0.2"),
        ("[model]\nname = 'Qwen'", 'model: expected a string, got {"name" = "Qwen"}'),
        ("layers = 1", "layers: expected a list, each item an integer, got 1"),
        ("[labels]\na = 1", 'labels: expected a table, each value a string, got {"a" = 1}'),
        (
            "[rollout]\nnum_rollouts = 1",
            "[rollout]: a group baseline needs at least 2 rollouts, got num_rollouts=1",
        ),
    ],
)
def test_a_wrong_key_or_value_is_refused(text, message):
    with pytest.raises(RecipeError) as error:
        read_recipe(Recipe, [BASE, ("new.toml", text)])
    assert str(error.value) == f"new.toml: {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.num_rollout=16", "unknown key 'rollout.num_rollout'; the nearest is 'rollout.num_rollouts'"),
        ("rollout.num_rollouts=many", 'rollout.num_rollouts: expected an integer, got "many"'),
        ("rollout=8", "rollout: expected a table, got 8"),
        ("model.name=8", 'model: expected a string, got {"name" = 8}'),
        ("is_resumed=yes", 'is_resumed: expected true or false, got "yes"'),
        ("--resume", "'--resume' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("rollout.num_rollouts=1", "[rollout]: a group baseline needs at least 2 rollouts, got num_rollouts=1"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(RecipeError) as error:
        read_recipe(Recipe, [BASE], [override])
    assert str(error.value) == f"command line: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = = 2\n", "bad.toml:2: not TOML: Invalid value"),
        ("a = 1\n\na = 2\n", "bad.toml:3: not TOML: Cannot overwrite a value"),
        ("a = 1\nb = [1,\n", "bad.toml:3: not TOML: Invalid value (at end of document)"),
    ],
)
def test_malformed_toml_is_refused_with_its_line(text, message):
    with pytest.raises(RecipeError) as error:
        read_recipe(Recipe, [("bad.toml", text)])
    assert str(error.value) == message


def test_missing_keys_are_all_named():
    with pytest.raises(RecipeError) as error:
        read_recipe(Recipe, [("a.toml", "[noise]\nseed = 1")], ["stage=sft"])
    assert str(error.value) == (
        "a.toml, command line: missing model, optim.lr, noise.share; required, as there is no default"
    )


finite = st.floats(allow_nan=False)
# "\x7f" and the line ends are what TOML treats unlike JSON.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["\x7f", "\r\n", '"\\', "\x00"]
)
recipes = st.builds(
    Recipe,
    model=any_text,
    optim=st.builds(Optim, lr=finite, betas=st.tuples(finite, finite), warmup_steps=st.none() | st.integers()),
    stage=st.sampled_from(["sft", "grpo"]),
    is_resumed=st.booleans(),
    rollout=st.builds(
        Rollout,
        num_rollouts=st.integers(2, 99),
        temperature=finite,
        stop=st.lists(any_text, max_size=3).map(tuple),
    ),
    noise=st.none() | st.builds(Noise, share=finite, seed=st.integers()),
    note=st.none() | any_text,
    layers=st.lists(st.integers(), max_size=3),
    labels=st.dictionaries(any_text, any_text, max_size=3),
)


@given(recipes)
def test_a_resolved_recipe_reads_back_equal(recipe):
    assert read_recipe(Recipe, [("saved.toml", to_toml(recipe))]) == recipe


def test_the_written_recipe_is_readable():
    assert to_toml(Recipe(model="Qwen3-8B", optim=Optim(lr=5e-7), noise=Noise(share=math.inf))) == (
        'model = "Qwen3-8B"\nstage = "grpo"\nis_resumed = false\nlayers = []\nlabels = {"by" = "us"}\n'
        "\n[optim]\nlr = 5e-07\nbetas = [0.9, 0.95]\n"
        "\n[rollout]\nnum_rollouts = 4\ntemperature = 1.0\nstop = []\n"
        "\n[noise]\nshare = inf\nseed = 0\n"
    )


@dataclass(frozen=True)
class Clipped:
    clip: float | None = 1.0


def test_a_none_that_toml_cannot_say_is_refused():
    with pytest.raises(ValueError, match=r"a field is None \(or nan\) where its default is not"):
        to_toml(Clipped(clip=None))


FILES = {
    "recipes/paper.toml": 'model = "Qwen3-8B"\n[optim]\nlr = 5e-7\nwarmup_steps = 3\n',
    "recipes/ablations/flat.toml": 'base = "../paper.toml"\n[optim]\nlr = 1e-6\n',
    "recipes/ablations/noisy.toml": 'base = "flat.toml"\n[noise]\nshare = 0.5\n',
    "recipes/a.toml": 'base = "b.toml"\n',
    "recipes/b.toml": 'base = "./a.toml"\n',
    "recipes/orphan.toml": 'base = "nowhere.toml"\n',
    "recipes/odd.toml": "base = 3\n",
}


def read_file(name: str) -> str:
    if name not in FILES:
        raise ValueError(f"{name}: no such file")
    return FILES[name]


def test_a_recipe_says_only_what_differs_from_its_base():
    texts = with_bases("recipes/ablations/noisy.toml", read_file)
    assert [name for name, _ in texts] == [
        "recipes/paper.toml",
        "recipes/ablations/flat.toml",
        "recipes/ablations/noisy.toml",
    ]
    assert read_recipe(Recipe, texts, ["noise.seed=4"]) == Recipe(
        model="Qwen3-8B", optim=Optim(lr=1e-6, warmup_steps=3), noise=Noise(share=0.5, seed=4)
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a", "recipes/b.toml: base: a circle: recipes/a.toml -> recipes/b.toml -> recipes/a.toml"),
        ("orphan", "recipes/orphan.toml: base: recipes/nowhere.toml: no such file"),
        ("odd", "recipes/odd.toml: base: expected a string, got 3"),
        ("none", "recipes/none.toml: no such file"),
    ],
)
def test_a_base_that_cannot_be_built_on_is_told(name, problem):
    with pytest.raises(RecipeError) as caught:
        with_bases(f"recipes/{name}.toml", read_file)
    assert str(caught.value) == problem


def test_a_base_that_nobody_has_read_is_not_passed_over():
    with pytest.raises(RecipeError, match=r"flat.toml: base: ../paper.toml has not been read before it"):
        read_recipe(Recipe, [("recipes/ablations/flat.toml", FILES["recipes/ablations/flat.toml"])])
