"""Verifiable checkers of a policy's answers: a program that says how right an answer is, from 0 to 1."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import fmean

from patarm_core.benchmarks.ifeval import follows, read_instructions
from patarm_core.embedded.policy import right_share
from patarm_core.fields import FieldError, Fields, kind
from patarm_core.policy_rows import PolicyPrompt

RIGHT = 'expected "embedded", "ifeval" or "module:function"'


class CheckerFailure(Exception):
    """A function of the user's failed: told in one line, and the run halts."""


@dataclass(frozen=True, slots=True)
class Checker:
    """checker(prompt, text) is how right an answer is; CheckerFailure where it cannot be told."""

    share: Callable[[PolicyPrompt, str], float]
    check: Callable[[Sequence[PolicyPrompt]], None] = lambda _prompts: None  # ValueError: one that cannot be checked

    def __call__(self, prompt: PolicyPrompt, text: str) -> float:
        return self.share(prompt, text)


def open_checker(name: str) -> Checker | None:
    """The checker that a recipe names; None where it names none.

    Args:
        name: "embedded", of the embedded set; "ifeval", the share of a prompt's instructions that the answer follows
            (strict), where `checks` has IFEval's "instruction_id_list" and "kwargs"; "module:function", called as
            function(prompt, response, checks) with the row's own `checks`.

    Raises:
        ValueError: there is no such checker.
    """
    if not name:
        return None
    if name == "embedded":
        return Checker(lambda prompt, text: right_share(prompt.prompt, text))
    if name == "ifeval":
        return Checker(followed_share, _check_instructions)
    function = load_function(name, RIGHT)
    return Checker(lambda prompt, text: _told(name, function, prompt, text))


def followed_share(prompt: PolicyPrompt, text: str) -> float:
    """The share of the prompt's IFEval instructions that hold of the text as it stands; a blank one follows none."""
    return fmean(follows(text, instruction.check) for instruction in read_instructions(Fields(prompt.checks)))


def _check_instructions(prompts: Sequence[PolicyPrompt]) -> None:
    for prompt in prompts:
        name = f"prompt {prompt.id} of {prompt.source}: checks"
        if not isinstance(prompt.checks, dict):
            raise ValueError(f"{name}: is {kind(prompt.checks)}; expected an object of instruction_id_list and kwargs")
        try:
            read_instructions(Fields(prompt.checks))
        except FieldError as error:
            raise ValueError(f"{name}.{error}") from None


def load_function(name: str, right: str) -> Callable:
    """ValueError of one line, with `right`, if there is no such function."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{name!r} is not a function; {right}")
    try:
        loaded = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(f"{name!r} cannot be imported: {error}; {right}") from None
    if not callable(loaded):
        raise ValueError(f"{name!r} is {type(loaded).__name__}, not a function; {right}")
    return loaded


def _told(name: str, function: Callable, prompt: PolicyPrompt, text: str) -> float:
    place = f"data.checker {name}: prompt {prompt.id} of {prompt.source}"
    try:
        value = function(prompt.prompt, text, prompt.checks)
    except Exception as error:  # whatever a user's function raises
        raise CheckerFailure(f"{place}: {type(error).__name__}: {error}") from error
    if isinstance(value, Real) and 0 <= value <= 1:  # NumPy's are real numbers too
        return float(value)
    raise CheckerFailure(f"{place}: gave {value!r}; expected a number from 0 to 1")
