"""Runs the tests of this folder and records what each model type can do: python tests/families/outcomes.py

The page of models prints the record, docs/results/families.json. A test that fails is recorded as a no.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "results" / "families.json"
CASE = re.compile(r"::(\w+)\[([a-z0-9_]+)(?:-(\w+))?\]$")
# What a test shows; those that are not named here are about training.
STEPS = {
    "test_prompt_ids_are_the_processors": "prepare",
    "test_training_ids_are_the_processors_and_begin_with_the_prompt": "prepare",
    "test_labels_are_the_answers_and_what_ends_them": "prepare",
    "test_a_question_cannot_write_control_tokens": "prepare",
    "test_greedy_replies_of_a_mixed_batch_are_transformers_row_by_row": "evaluate",
    "test_two_tasks_are_learned_and_come_back_from_disk": "resume",
    "test_an_export_is_a_model_of_its_type": "export",
}


class Outcomes:
    """By checkpoint: of each step whether all its tests passed, and of each method what became of it."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, bool]] = {}
        self.methods: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = CASE.search(report.nodeid)
        if found is None or (report.when != "call" and report.passed):
            return
        test, name, method = found.groups()
        step = STEPS.get(test, "train")
        steps = self.steps.setdefault(name, dict.fromkeys(("prepare", "train", "evaluate", "resume", "export"), True))
        steps[step] = steps[step] and not report.failed
        if method is not None:
            refused = ("refused", True) in report.user_properties
            outcome = "fails" if report.failed else "refused" if refused else "learns"
            self.methods.setdefault(name, {})[method] = outcome


def main() -> int:
    """Run, then write the record; returns pytest's exit code."""
    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).parent)], plugins=[outcomes])
    record = {name: {**steps, "methods": outcomes.methods[name]} for name, steps in sorted(outcomes.steps.items())}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
