"""Reads the source of every package and holds it to the layering and to the rules that come with it.

    patarm_core  <-  kernels  <-  rollout  <-  eval  <-  trainer  <-  bench

Every rule is a function from one file's path and text to its violations, so that each is also shown to fail.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["patarm_core", "kernels", "rollout", "eval", "trainer", "bench"]
RUNNABLE = ["rollout", "eval", "trainer", "bench"]  # `torchrun trainer/main.py` puts trainer/ first on sys.path
NOT_DECLARED_BUT_PRESENT = {"tqdm"}  # comes with transformers
FOREIGN = "eval/judges/foreign.py"  # the adapter of reward models that our decoder does not compute
MODELLING = re.compile(r"Model($|[A-Z])|For[A-Z]|^pipeline$")  # AutoModel, Qwen3ForCausalLM, PreTrainedModel

Violations = Iterator[str]


class Import(NamedTuple):
    line: int
    module: str  # "" for `from . import x`
    name: str | None  # x in `from module import x`
    bound: str | None  # the name it puts into the namespace
    level: int  # leading dots
    is_lazy: bool  # inside a function

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(source: str) -> list[Import]:
    """Every import of a file: statements anywhere, and `import_module("x")` / `__import__("x")` of a literal."""
    found = []

    def visit(node: ast.AST, is_lazy: bool) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    found.append(Import(node.lineno, alias.name, None, bound, 0, is_lazy))
            case ast.ImportFrom():
                for alias in node.names:
                    bound = alias.asname or alias.name
                    found.append(Import(node.lineno, node.module or "", alias.name, bound, node.level, is_lazy))
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                dots = len(module) - len(module.lstrip("."))
                found.append(Import(node.lineno, module.lstrip("."), None, None, dots, is_lazy))
        is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_lazy)

    visit(ast.parse(source), False)
    return found


def layer_of(path: str) -> str:
    return path.partition("/")[0]


@cache
def declared() -> tuple[frozenset[str], frozenset[str]]:
    """Import names of the runtime dependencies and of the extras, as pyproject.toml declares them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> frozenset[str]:
        return frozenset(re.match(r"[\w.-]+", r)[0].lower().replace("-", "_") for r in requirements)

    extras = [r for group in project["optional-dependencies"].values() for r in group]
    return names(project["dependencies"]) | NOT_DECLARED_BUT_PRESENT, names(extras)


@cache
def taken_names() -> frozenset[str]:
    """What a file first on sys.path would hide: the standard library, whatever is installed, and our own packages."""
    runtime, extras = declared()
    return frozenset(sys.stdlib_module_names) | packages_distributions().keys() | runtime | extras | set(LAYERS)


def points_left(path: str, source: str) -> Violations:
    """A package imports itself and those to its left; nothing imports tests."""
    here = layer_of(path)
    to_the_right = LAYERS[LAYERS.index(here) + 1 :] + ["tests"]
    for i in imports_of(source):
        if i.level == 0 and i.top in to_the_right:
            yield f"{path}:{i.line}: {here} must not import {i.top}"


def is_absolute(path: str, source: str) -> Violations:
    for i in imports_of(source):
        if i.level:
            yield f"{path}:{i.line}: relative import; write the full name of the module"


def keeps_eval(path: str, source: str) -> Violations:
    """`import eval` would hide the builtin."""
    for i in imports_of(source):
        if i.bound == "eval" or (i.module == "eval" and i.name is None):
            yield f"{path}:{i.line}: hides or binds `eval`; write `from eval.module import name`"


def core_is_standard_library(path: str, source: str) -> Violations:
    if layer_of(path) == "patarm_core":
        for i in imports_of(source):
            if i.level == 0 and i.top not in sys.stdlib_module_names and i.top != "patarm_core":
                yield f"{path}:{i.line}: patarm_core imports the standard library only, not {i.top}"


def core_opens_nothing(path: str, source: str) -> Violations:
    """`open(...)`, `io.open(...)`, `os.open(...)` and `codecs.open(...)`."""
    if layer_of(path) == "patarm_core":
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Name(id="open") | ast.Attribute(value=ast.Name(id="io" | "os" | "codecs"), attr="open")
                ):
                    yield f"{path}:{node.lineno}: patarm_core is pure; open the file where it is wired together"


def models_are_ours(path: str, source: str) -> Violations:
    """transformers gives tokenizers, chat templates and configs; its modelling code is for tests, bench and FOREIGN."""
    if layer_of(path) == "bench" or path == FOREIGN:
        return
    wanted = "our decoder is the model; transformers' modelling code is for tests and bench"
    for i in imports_of(source):
        if i.top == "transformers" and (
            i.module.startswith("transformers.model")
            or (i.name is not None and (i.name == "models" or MODELLING.search(i.name)))
        ):
            yield f"{path}:{i.line}: {wanted}"
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="transformers"), attr=name):
                if name == "models" or MODELLING.search(name):
                    yield f"{path}:{node.lineno}: {wanted}"


def third_party_is_declared(path: str, source: str) -> Violations:
    """Runtime dependencies anywhere, extras only inside functions, nothing else; bench may use its peers."""
    if layer_of(path) == "bench":
        return
    runtime, extras = declared()
    for i in imports_of(source):
        needs = "tensorboard" if f"{i.module}.{i.name}.".startswith("torch.utils.tensorboard.") else i.top
        if i.level or needs in sys.stdlib_module_names or needs in LAYERS or needs in runtime or needs == "tests":
            continue
        if needs not in extras:
            yield f"{path}:{i.line}: {needs} is not a declared dependency"
        elif not i.is_lazy:
            yield f"{path}:{i.line}: {needs} is an optional extra; import it inside the function that needs it"


def init_is_empty(path: str, source: str) -> Violations:
    if path.endswith("/__init__.py") and source.strip():
        yield f"{path}:1: __init__.py files are empty"


def name_is_free(path: str, source: str) -> Violations:
    """A file or folder beside a main.py hides the module of its name. (`main` and `__init__` are nobody's.)"""
    if layer_of(path) in RUNNABLE:
        name = path.split("/")[1].removesuffix(".py")
        if name in taken_names() - {"main", "__init__"}:
            yield f"{path}:1: run from its folder, this hides the module `{name}`; give it another name"


RULES: list[Callable[[str, str], Violations]] = [
    points_left,
    is_absolute,
    keeps_eval,
    core_is_standard_library,
    core_opens_nothing,
    models_are_ours,
    third_party_is_declared,
    init_is_empty,
    name_is_free,
]


@cache
def sources() -> dict[str, str]:
    files = (file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    assert {layer_of(path) for path in sources()} == set(LAYERS)
    assert [violation for path, source in sources().items() for violation in rule(path, source)] == []


BROKEN = [
    (points_left, "patarm_core/par.py", "from kernels.sample import draw"),
    (points_left, "kernels/sample.py", "import rollout.engine"),
    (points_left, "rollout/main.py", "def f():\n    from trainer.grpo import grpo_loss"),
    (points_left, "eval/main.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import bench.step"),
    (points_left, "trainer/loop.py", "import importlib\nimportlib.import_module('bench.step')"),
    (points_left, "bench/step.py", "from tests.strategies import pairs"),
    (is_absolute, "trainer/grpo.py", "from . import loop"),
    (is_absolute, "trainer/grpo.py", "from ..rollout.engine import Engine"),
    (keeps_eval, "trainer/loop.py", "import eval"),
    (keeps_eval, "trainer/loop.py", "import eval as judges"),
    (keeps_eval, "trainer/loop.py", "import eval.report"),
    (keeps_eval, "trainer/loop.py", "from eval.report import table as eval"),
    (core_is_standard_library, "patarm_core/par.py", "import numpy as np"),
    (core_is_standard_library, "patarm_core/par.py", "def f():\n    from torch import Tensor"),
    (core_is_standard_library, "patarm_core/embedded/chat.py", "__import__('regex')"),
    (core_opens_nothing, "patarm_core/pairs.py", "with open('pairs.jsonl') as file:\n    pass"),
    (core_opens_nothing, "patarm_core/pairs.py", "import io\nio.open('pairs.jsonl')"),
    (models_are_ours, "rollout/decoder.py", "from transformers import AutoModelForCausalLM"),
    (models_are_ours, "rollout/decoder.py", "from transformers import Qwen3ForCausalLM"),
    (models_are_ours, "rollout/decoder.py", "from transformers import Qwen3Model"),
    (models_are_ours, "rollout/decoder.py", "from transformers.models.qwen3 import modeling_qwen3"),
    (models_are_ours, "rollout/decoder.py", "from transformers.modeling_utils import load_state_dict"),
    (models_are_ours, "eval/scalar.py", "import transformers\ntransformers.AutoModelForSequenceClassification"),
    (models_are_ours, "eval/scalar.py", "import transformers\ntransformers.models.llama"),
    (third_party_is_declared, "trainer/loop.py", "import pandas"),
    (third_party_is_declared, "trainer/loop.py", "def f():\n    import pandas"),
    (third_party_is_declared, "eval/report.py", "import matplotlib.pyplot as plt"),
    (third_party_is_declared, "trainer/metrics.py", "from torch.utils.tensorboard import SummaryWriter"),
    (init_is_empty, "kernels/__init__.py", "from kernels.sample import draw\n"),
    (init_is_empty, "patarm_core/embedded/__init__.py", '"""The embedded set."""\n'),
    (name_is_free, "rollout/queue.py", ""),
    (name_is_free, "trainer/tokenizers.py", ""),
    (name_is_free, "trainer/profile/cpu.py", ""),
    (name_is_free, "eval/pytest.py", ""),
    (name_is_free, "bench/kernels.py", ""),
]

KEPT = [
    (points_left, "bench/step.py", "from trainer.loop import run\nfrom bench.table import row"),
    (points_left, "trainer/main.py", "from patarm_core.par import par_rewards\nfrom eval.report import table"),
    (keeps_eval, "trainer/loop.py", "from eval.report import table\nimport trainer.eval_step"),
    (core_is_standard_library, "patarm_core/par.py", "import tomllib\nfrom patarm_core.judgment import parse"),
    (core_is_standard_library, "kernels/sample.py", "import torch"),
    (core_opens_nothing, "rollout/weights.py", "open('model.safetensors')"),
    (models_are_ours, "rollout/decoder.py", "from transformers import AutoConfig, PreTrainedTokenizerFast"),
    (models_are_ours, "bench/peers.py", "from transformers import AutoModelForCausalLM"),
    (models_are_ours, FOREIGN, "from transformers import AutoModel"),
    (third_party_is_declared, "eval/report.py", "def plot():\n    import matplotlib.pyplot as plt"),
    (third_party_is_declared, "trainer/loop.py", "import json, torch, triton\nfrom tqdm import tqdm"),
    (third_party_is_declared, "bench/peers.py", "import vllm"),
    (init_is_empty, "kernels/__init__.py", ""),
    (init_is_empty, "kernels/sample.py", "import torch"),
    (name_is_free, "kernels/profile.py", ""),
    (name_is_free, "trainer/main.py", ""),
    (name_is_free, "trainer/grpo.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_a_rule_catches_what_breaks_it(rule, path, source):
    assert len(list(rule(path, source))) == 1


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_a_rule_passes_what_keeps_it(rule, path, source):
    assert list(rule(path, source)) == []


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _, _ in BROKEN} == set(RULES)
