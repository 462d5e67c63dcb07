"""Verifiable checkers of a policy's answers: a program that says how right an answer is, from 0 to 1."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from patarm_core.embedded.policy import right_share
from patarm_core.policy_rows import PolicyPrompt

Checker = Callable[[PolicyPrompt, str], float]  # of a prompt and an answer's text


def open_checker(name: str) -> Checker | None:
    """The checker that a recipe names; None where it names none.

    Args:
        name: "embedded", of the embedded set; "module:function", called as function(prompt, response, checks) with the
            row's own `checks`.

    Raises:
        ValueError: there is no such checker.
    """
    if not name:
        return None
    if name == "embedded":
        return lambda prompt, text: right_share(prompt.prompt, text)
    function = load_function(name, 'expected "embedded" or "module:function"')
    return lambda prompt, text: _share(name, function(prompt.prompt, text, prompt.checks))


def load_function(name: str, right: str) -> Callable:
    """ValueError of one line, with `right`, if there is no such function."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{name!r} is not a function; {right}")
    try:
        loaded = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}; {right}") from None
    if not callable(loaded):
        raise ValueError(f"{name!r} is {type(loaded).__name__}, not a function; {right}")
    return loaded


def _share(name: str, value: object) -> float:
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"the checker {name} gave {value!r}; expected a number from 0 to 1")
