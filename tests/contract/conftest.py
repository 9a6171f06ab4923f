"""The contract suite runs over every method of ours, or over one method of an installed package:

python -m pytest tests/contract/test_methods.py --method-contract my_method
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from components.methods import METHODS, method_config

if TYPE_CHECKING:  # it imports torch and transformers, which a process that runs no test need not wait for
    from toy_tasks import Toy

# One of each kind: what test_methods.py does not ask is asked of these by default, and of the others with `-m long`.
KINDS = (
    *("zero_shot", "replay", "sequential_lora", "moelora", "lcia", "continual_llava", "ewc", "o_lora", "l2p"),
    *("modal_prompt", "eproj", "merging", "hide", "smolora"),
)
# How answers are batched, kept and scored differs by what a method adds where; of these one of each.
ANSWERING = ("zero_shot", "sequential_lora", "continual_llava", "lcia", "l2p", "hide")
ASKED = {
    "test_methods.py": tuple(METHODS),
    **dict.fromkeys(("test_answers_one_by_one.py", "test_option_scores.py", "test_refilled_answers.py"), ANSWERING),
    **dict.fromkeys(("test_bfloat16.py", "test_reuse.py", "test_served_methods.py"), ANSWERING),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method-contract", metavar="NAME", help="check only this method, ours or an installed one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`name` goes over the methods; `training_methods` leaves out those that train nothing, `task_free_methods` as well
    those that need boundaries between tasks.
    """
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if not marks & {"every_method", "training_methods", "task_free_methods"}:
        return
    chosen = metafunc.config.getoption("--method-contract")
    names = [chosen] if chosen else list(METHODS)
    if "task_free_methods" in marks:
        names = [name for name in names if method_config(name).is_task_free]
    if marks & {"training_methods", "task_free_methods"}:
        names = [name for name in names if method_config(name).is_trainable]
    asked = names if chosen else ASKED.get(metafunc.definition.path.name, KINDS)
    marks_of = {name: () if name in asked else (pytest.mark.long,) for name in names}
    metafunc.parametrize("name", [pytest.param(name, marks=marks_of[name]) for name in names])


@pytest.fixture(scope="session")
def encoded() -> list[Toy]:
    """Encoded once for all contract tests."""
    from toy_tasks import toy_tasks

    return toy_tasks()


@pytest.fixture(scope="session")
def pictured() -> list[Toy]:
    """The same with a picture in every row."""
    from toy_tasks import toy_tasks

    return toy_tasks(pictured=True)


@pytest.fixture
def toys(request: pytest.FixtureRequest, name: str) -> list[Toy]:
    """Both tasks, with pictures only for a method that learns from nothing else; their batches name the task for a
    method that has to be told it.
    """
    from toy_tasks import told

    encoded: list[Toy] = request.getfixturevalue("encoded" if method_config(name).learns_from_text else "pictured")
    return [told(toy) for toy in encoded] if method_config(name).needs_task_id else encoded
