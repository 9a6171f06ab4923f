"""Caption metrics: known figures of pycocoevalcap, ROUGE-L of one row by hand, and the tokens of both tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import DataError
from components.metrics import score
from components.metrics.captions import MEAN, SEVEN, caption_figures, java_home, plain_tokens
from components.metrics.released.tasks import compat_task_figures

# The example in aac-metrics' documentation, whose BLEU-1 and CIDEr-D are printed there: 0.4278 and 0.9614.
REPLIES = ["a man is speaking", "rain falls"]
REFERENCES = [
    ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
    ["rain is falling hard on a surface"],
]
needs_java = pytest.mark.skipif(java_home() is None, reason="no Java: install the extra captions")


def test_without_a_java_three_metrics_remain() -> None:
    found = caption_figures(REPLIES, REFERENCES, None)
    assert list(found) == [name for name in SEVEN if name != "meteor"]
    assert found["bleu_1"] == pytest.approx(42.78, abs=0.005)
    assert found["cider"] == pytest.approx(96.14, abs=0.005)


@pytest.mark.long
@needs_java
def test_all_seven_and_their_mean() -> None:
    found = caption_figures(REPLIES, REFERENCES, java_home())
    assert list(found) == [*SEVEN, MEAN]
    assert found["bleu_1"] == pytest.approx(42.78, abs=0.005)
    assert found["cider"] == pytest.approx(96.14, abs=0.005)
    assert 20 < found["meteor"] < 30
    assert found[MEAN] == pytest.approx(sum(found[name] for name in SEVEN) / 7)
    assert compat_task_figures("vizwiz-caption", REPLIES, REFERENCES, stream="ucit") == pytest.approx(found)


@needs_java
def test_both_tokenizers_agree_on_ordinary_captions() -> None:
    captions = [
        "A man riding a wave on top of a surfboard.",
        "Two dogs aren't playing with the man's frisbee, in a park!",
        'The "old" house -- built in 1900\'s -- is white/blue.',
        "It costs $5,000 & more... isn't it?",
        "A well-known black-and-white cat; they cannot see it.",
        "They're, we've, I'd, he'll #1 50% off",
        "",
    ]
    references = [["a dog"]] * len(captions)
    both = [caption_figures(captions, references, java) for java in (java_home(), None)]
    assert {name: both[0][name] for name in both[1]} == pytest.approx(both[1], abs=1e-6)
    assert plain_tokens(captions[1]) == [
        "two",
        "dogs",
        "are",
        "n't",
        "playing",
        "with",
        "the",
        "man",
        "'s",
        "frisbee",
        "in",
        "a",
        "park",
    ]


def test_rouge_of_one_caption_by_hand() -> None:
    """Four of five words in common with the first, of its six; precision 4/5 and recall 4/6 are its own best."""
    value = score("caption", "a dog runs through grass", ["the dog runs through the grass", "a cat"])
    precision, recall = 4 / 5, 4 / 6
    assert value == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    assert score("caption", "A dog.", ["a dog", "x"]) == pytest.approx(1.0)
    assert score("caption", "...", ["a dog"]) == score("caption", "a dog", ["."]) == 0.0


@given(reply=st.text(max_size=40), answers=st.lists(st.text(max_size=40), max_size=3))
def test_any_caption_scores_between_0_and_1(reply: str, answers: list[str]) -> None:
    assert 0.0 <= score("caption", reply, answers) <= 1.0


@pytest.mark.parametrize(("replies", "references"), [([], []), (["a"], []), (["a", "b"], [["a"], []])])
def test_nothing_to_score_is_said(replies: list[str], references: list[list[str]]) -> None:
    with pytest.raises(DataError, match="each needs at least one"):
        caption_figures(replies, references, None)
