"""The pictures of a stream: that they show what the matrix says, cell by cell."""

from __future__ import annotations

import numpy as np
from PIL import Image

from components.evaluation.heatmap import draw_score_matrix, draw_slot_usage
from components.evaluation.matrix import ScoreMatrix

INK = 128  # darker pixels belong to figures, frames or high scores


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


def test_higher_scores_are_darker_and_pictures_repeat() -> None:
    low = draw_score_matrix(ScoreMatrix(["a", "b"], [[5.0, None], [4.0, 6.0]]), "low")
    high = draw_score_matrix(ScoreMatrix(["a", "b"], [[95.0, None], [94.0, 96.0]]), "low")
    assert low.mode == "RGB"
    assert low.size == high.size
    assert pixels(high).mean() < pixels(low).mean() - 10
    again = draw_score_matrix(ScoreMatrix(["a", "b"], [[5.0, None], [4.0, 6.0]]), "low")
    assert again.tobytes() == low.tobytes()


def test_a_running_stream_and_one_with_zero_shot_can_be_drawn() -> None:
    running = draw_score_matrix(ScoreMatrix(["a", "b", "c"], [[1.0, 2.0, 3.0]], ["zero-shot"]), "running")
    whole = draw_score_matrix(ScoreMatrix(["a", "b", "c"], [[1.0, 2.0, 3.0]] * 4), "whole")
    assert whole.height > running.height
    assert whole.width == running.width


def test_long_names_get_room() -> None:
    short = draw_score_matrix(ScoreMatrix(["a"], [[50.0]]), "t")
    long = draw_score_matrix(ScoreMatrix(["a-task-with-a-long-name"], [[50.0]]), "t")
    assert long.width > short.width
    assert long.height > short.height


def test_slot_usage_shows_who_served() -> None:
    picture = pixels(draw_slot_usage({"a": [9, 1, 0, 0], "b": [0, 0, 0, 7]}, "slots"))
    unused = pixels(draw_slot_usage({"a": [0, 0, 0, 0], "b": [0, 0, 0, 0]}, "slots"))
    assert (picture < INK).sum() > (unused < INK).sum() + 1000


def test_many_slots_stay_one_picture() -> None:
    picture = draw_slot_usage({"a": [1] * 840, "b": [0] * 839 + [5]}, "slots")
    assert picture.width < 2600
