"""Functions stay small enough to be read: the bounds of CONTRIBUTING.md, measured over app/ and workers/."""

from __future__ import annotations

import ast
from statistics import median, quantiles

from tests.architecture.source import Function, length, modules

MEDIAN, P90, MOST = 8, 25, 60


def test_half_of_all_functions_have_at_most_eight_lines() -> None:
    assert median(_lengths().values()) <= MEDIAN, _longest()


def test_nine_of_ten_functions_have_at_most_twenty_five_lines() -> None:
    assert quantiles(_lengths().values(), n=10)[-1] <= P90, _longest()


def test_no_function_is_longer_than_sixty_lines() -> None:
    assert not {name: lines for name, lines in _lengths().items() if lines > MOST}


def test_a_docstring_and_decorators_do_not_count() -> None:
    tree = ast.parse('@decorated\ndef f():\n    """One.\n\n    Two.\n    """\n    x = 1\n    return x\n')
    [function] = [node for node in ast.walk(tree) if isinstance(node, Function)]
    assert length(function) == 3


def _lengths() -> dict[str, int]:
    return {
        f"{module.path}:{function.lineno} {function.name}": length(function)
        for module in modules()
        for function in module.functions()
    }


def _longest() -> str:
    worst = sorted(_lengths().items(), key=lambda item: -item[1])[:15]
    return "the longest: " + ", ".join(f"{name} ({lines})" for name, lines in worst)
