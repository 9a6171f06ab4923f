"""The family table of the pages is what the tests found. This plugin writes it down:

python -m pytest tests/families tests/integration/test_families_under_ray.py --record-families

A test marked `shows(STEP, ...)` stands for steps of the model type that it is parametrised with, and of its method's
kind or the one that it names. Cells of tests that were not run stay as they were.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "docs" / "results" / "families.json"
STEPS = ("prepare", "train", "evaluate", "resume", "export")
ANY = "any"  # the kind of a test without a method; "killed" in the test of runs that are
KINDS = ("plain", "sums", "merging", "hard-routed", "soft", "prompts", "pictures", "projector")
OF_SOME = {
    "o_lora": "sums",
    "keep_lora": "sums",
    "merging": "merging",
    "hide": "pictures",
    "modal_prompt": "pictures",
    "cf_router": "pictures",
}


def kind_of(method: str) -> str:
    """Which of `KINDS` a method is: by what it adds to the model, and by what chooses it."""
    from components.methods import method_config  # torch, which a session without these tests need not wait for

    config = method_config(method)
    if method in OF_SOME:
        return OF_SOME[method]
    if not config.learns_from_text:
        return "projector"
    if not config.starts_as_backbone:
        return "prompts"
    return {"plain": "plain", "hard": "hard-routed", "soft": "soft"}[config.export]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-families",
        action="store_true",
        help="export every kind of method, and write the family table",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(*steps, kind=): what a passed test says in the family table")
    if config.getoption("--record-families"):
        config.pluginmanager.register(Recorder())


@pytest.fixture(autouse=True)
def _shown(request: pytest.FixtureRequest) -> None:
    """Say what the test stands for, in its report: it may run in another process."""
    mark = request.node.get_closest_marker("shows")
    if mark is None:
        return
    from tests.families import tiny  # imports transformers

    values = [value for value in request.node.callspec.params.values() if isinstance(value, str)]
    (name,) = [value for value in values if value in tiny.NAMES]
    method = next((value for value in values if value not in tiny.NAMES), None)
    kind = mark.kwargs.get("kind", ANY) if method is None else kind_of(method)
    request.node.user_properties.append(("shows", [name, kind, list(mark.args)]))


class Recorder:
    """Gathers outcomes. A cell holds "passed" if all its tests did, "refused" if the refusal was what they expect."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "shows" not in properties or report.skipped or (report.when != "call" and report.passed):
            return
        outcome = "refused" if report.passed and properties.get("refused") else report.outcome
        name, kind, steps = properties["shows"]  # type: ignore[misc]
        for step in steps:
            self.found[name, step, kind].add(outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput") or not self.found:
            return
        table = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
        for (name, step, kind), outcomes in sorted(self.found.items()):
            (first, *others) = sorted(outcomes)
            table.setdefault(name, {}).setdefault(step, {})[kind] = first if not others else "failed"
        FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
