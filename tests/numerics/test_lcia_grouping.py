"""LCIA's codebook: TF-IDF fitted on every pair alone, CoIN's groups, reuse or expand, allocation at test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from components.core.errors import CheckpointError
from components.methods.common.codebook import Codebook, CodebookOptions, compared_text
from components.methods.common.tfidf import PairwiseTfidf
from components.methods.lcia import LciaConfig

# LLaVA-1.5's answer-format requests, as CoIN's original instructions use them
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
BOX = "Please provide the bounding box coordinate of the region this sentence describes"
OBJECT = "What is the object in the image?"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

# First human turns in CoIN's order of tasks; ImageNet's as the one line that the code trains on.
COIN = {
    "ScienceQA": [
        f"Which is a solid?\nA. {one}\nB. {other}\n{LETTER}" for one, other in [("ice", "air"), ("oil", "tin")]
    ],
    "TextVQA": [f"What is on the sign?\nReference OCR token: {token}\n{SHORT}" for token in ("STOP", "EXIT, 12")],
    "ImageNet": [OBJECT],
    "GQA": [f"Is the {thing} on the left?\n{SHORT}" for thing in ("cup", "dog")],
    "VizWiz": [f"What is this?\n{UNANSWERABLE}\n{SHORT}", f"Which colour?\n{UNANSWERABLE}\n{SHORT}"],
    "Grounding": [f"{BOX}: {thing}" for thing in ("white cat", "man on a bike", "left chair")],
    "VQAv2": [f"How many {things} are there?\n{SHORT}" for things in ("birds", "people")],
    "OCRVQA": [f"Who wrote this book?\n{SHORT}", f"What is the title?\n{SHORT}"],
}
COIN_GROUPS = [0, 1, 2, 1, 1, 3, 1, 1]

RELEASED = LciaConfig().codebook_options
DEFAULT = LciaConfig.per_sample().codebook_options  # the options that most tests here vary
TO_COLON = replace(DEFAULT, field="last_line_to_colon")


def literal(one: str, other: str) -> float:
    """The released code's similarity: a vectorizer of its own for the pair, then the cosine."""
    vectorizer = TfidfVectorizer(stop_words="english")
    if not any(map(vectorizer.build_analyzer(), (one, other))):  # scikit-learn refuses to fit a pair without any term
        with pytest.raises(ValueError, match="empty vocabulary"):
            vectorizer.fit([one, other])
        return 0.0
    vectors = vectorizer.fit_transform([one, other])
    return float(cosine_similarity(vectors)[0, 1])


def cosine(one: str, other: str) -> float:
    return float(PairwiseTfidf([other]).cosines([one]))


def random_texts(count: int, seed: int) -> list[str]:
    """Texts with repeated words, capitals, numbers, accents, single letters and stop words; some without any term."""
    words = [
        "cat",
        "Cat",
        "cats",
        "dog",
        "red",
        "RED",
        "blue",
        "3",
        "42",
        "café",
        "x-ray",
        "on_off",
        "a",
        "the",
        "what",
    ]
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 9, (count,), generator=generator).tolist()
    picks = [torch.randint(0, len(words), (size,), generator=generator).tolist() for size in sizes]
    return [" ".join(words[index] for index in pick) for pick in picks]


def test_the_closed_form_equals_a_fit_on_every_pair() -> None:
    texts, stored = random_texts(20, 0), random_texts(14, 1)
    texts += ["unseen words only", SHORT, LETTER, f"{OBJECT}\n{SHORT}"]
    stored += [SHORT, OBJECT, BOX, "the of a"]
    found = PairwiseTfidf(stored).cosines(texts)
    expected = torch.tensor([[literal(text, other) for other in stored] for text in texts], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 0.2 < float((expected > 0).double().mean()) < 0.9
    assert float(expected.max()) == pytest.approx(1.0)


@pytest.mark.parametrize(("one", "other"), [("", ""), ("the", "is it"), ("the", "cat"), ("cat", "the"), ("x y", "x y")])
def test_texts_without_a_term_are_unlike_everything(one: str, other: str) -> None:
    assert cosine(one, other) == 0.0
    assert literal(one, other) == 0.0


def test_similarities_of_coins_original_instructions() -> None:
    """Measured with scikit-learn for the note this method follows; three digits."""
    assert cosine(LETTER, SHORT) == pytest.approx(0.092, abs=5e-4)
    assert [cosine(BOX, other) for other in (LETTER, SHORT, OBJECT)] == [0.0, 0.0, 0.0]
    assert [cosine(OBJECT, other) for other in (LETTER, SHORT, BOX)] == [0.0, 0.0, 0.0]
    assert cosine(SHORT, SHORT) == pytest.approx(1.0, abs=1e-12)
    # ImageNet's two-line test text is nearer to the short-answer group than to its own, and below 0.9 in both
    assert cosine(f"{OBJECT}\n{SHORT}", SHORT) == pytest.approx(0.777, abs=5e-4)
    assert cosine(f"{OBJECT}\n{SHORT}", OBJECT) == pytest.approx(0.380, abs=5e-4)


def learn_coin(options: CodebookOptions) -> Codebook:
    codebook = Codebook(options)
    for name, instructions in COIN.items():
        codebook.decide(name, instructions)
        codebook.learned(instructions, None)
    return codebook


@pytest.mark.parametrize("field", ["last_line", "last_line_to_colon"])
def test_eight_coin_tasks_make_four_groups(field: str) -> None:
    codebook = learn_coin(replace(DEFAULT, field=field))  # type: ignore[arg-type]
    assert [decision.group for decision in codebook.decisions] == COIN_GROUPS
    reused = [decision.task for decision in codebook.decisions if decision.reused]
    assert reused == ["GQA", "VizWiz", "VQAv2", "OCRVQA"]  # the four that the scripts train with averaging
    assert codebook.groups[:3] == [[LETTER], [SHORT], [OBJECT]]
    assert codebook.newest_task(1, list(COIN)) == "OCRVQA"
    assert codebook.newest_task(1, ["ScienceQA", "TextVQA", "GQA"]) == "GQA"
    assert codebook.decisions[0].similarity is None
    assert codebook.decisions[1].similarity == pytest.approx(0.092, abs=5e-4)
    assert codebook.decisions[3].similarity == pytest.approx(1.0)


def test_a_test_text_reaches_its_group_by_the_same_field() -> None:
    codebook = learn_coin(TO_COLON)
    asked = [
        f"Is the lamp on?\n{SHORT}",
        f"Pick.\nA. one\nB. two\n{LETTER}",
        f"{BOX}: a red kite",
        OBJECT,
    ]
    assert codebook.allocate(asked) == ([1, 0, 3, 2], [True] * 4)


def test_below_the_threshold_nothing_matches_and_a_stand_in_serves() -> None:
    two_lines, foreign = f"{OBJECT}\n{SHORT}", "Sing a song"
    best = learn_coin(replace(TO_COLON, field="whole", threshold=0.9))
    # whole texts: the task's own strings differ, so ImageNet's test text matches nothing
    assert best.allocate([two_lines, foreign])[1] == [False, False]
    lines = Codebook(TO_COLON)
    for name in ("TextVQA", "ImageNet", "Grounding"):
        lines.decide(name, COIN[name])
        lines.learned(COIN[name], None)
    lines.options = replace(TO_COLON, field="whole")
    assert lines.allocate([two_lines]) == ([0], [False])  # 0.777: the short-answer group, not its own
    lines.options = replace(TO_COLON, field="whole", on_miss="last")
    assert lines.allocate([two_lines]) == ([2], [False])  # the code: it falls to the last group, grounding's
    assert lines.allocate([foreign]) == ([2], [False])
    lines.options = DEFAULT
    assert lines.allocate([foreign]) == ([0], [False])  # equally unlike all: the oldest


def test_a_test_file_is_allocated_by_one_mean_over_its_distinct_strings() -> None:
    codebook = learn_coin(TO_COLON)
    rows = [f"Is it {word}?\n{SHORT}" for word in ("red", "big", "new")] + [f"Pick.\n{LETTER}"]
    assert codebook.allocate(rows) == ([1, 1, 1, 0], [True] * 4)
    codebook.options = replace(TO_COLON, allocation="file")
    # two distinct strings, each 1 with its own group and 0.092 with the other's: a tie, which the older group takes
    assert codebook.allocate(rows) == ([0] * 4, [False] * 4)
    assert codebook.allocate(rows[:3]) == ([1] * 3, [True] * 3)
    codebook.options = replace(TO_COLON, allocation="file", on_miss="last")
    assert codebook.allocate(rows) == ([3] * 4, [False] * 4)
    assert codebook.allocate_file([*rows[:3], *rows]) == (3, False)  # how often a string occurs does not count


def released(trained: list[list[str]], test: list[str], threshold: float) -> tuple[list[int], int]:
    """The released selection written out: the group of every training file in turn, and of a test file after them."""
    books: list[list[str]] = []

    def most_similar(strings: list[str]) -> tuple[int, float]:
        pairs = [[literal(one, other) for one in strings for other in book] for book in books]
        means = [sum(values) / len(values) for values in pairs]
        return means.index(max(means)), max(means)

    groups = []
    for texts in trained:
        strings = sorted({text.split("\n")[-1].strip() for text in texts})
        group, similarity = most_similar(strings) if books else (0, 0.0)
        if similarity < threshold or not books:
            books.append([])
            group = len(books) - 1
        books[group] += [string for string in strings if string not in books[group]]
        groups.append(group)
    group, similarity = most_similar(sorted({text.split("\n")[-1].strip() for text in test}))
    return groups, group if similarity >= threshold else len(books) - 1


@pytest.mark.parametrize("threshold", [0.9, 0.3])
def test_the_default_is_the_released_selection_on_random_files(threshold: float) -> None:
    expected, found, missed = [], [], 0
    forms = [SHORT, LETTER, OBJECT, "Reply with one short word or phrase.", "Give the option's letter.", "Name it."]
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)

        def file(generator: torch.Generator = generator) -> list[str]:
            """Six rows that end with one of the forms, in one of four files the last one with another."""
            first, second = torch.randint(0, len(forms), (2,), generator=generator).tolist()
            mixed = float(torch.rand(1, generator=generator)) < 0.25
            return [f"Question {row}?\n{forms[second if mixed and row == 5 else first]}" for row in range(6)]

        files, test = [file() for _ in range(5)], file()
        expected.append(released(files, test, threshold))
        codebook = Codebook(replace(RELEASED, threshold=threshold))
        for number, texts in enumerate(files):
            codebook.decide(f"task {number}", texts)
            codebook.learned(texts, None)
        group, matched = codebook.allocate_file(test)
        missed += not matched
        found.append(([decision.group for decision in codebook.decisions], group))
    assert found == expected
    assert len({str(groups) for groups, _ in found}) >= 4
    assert threshold < 0.5 or 0 < missed < 12


def test_mean_and_max_over_a_groups_strings() -> None:
    strings = [SHORT, LETTER, "Reply with one short word or phrase."]
    for aggregation, reduce in (("mean", lambda values: sum(values) / len(values)), ("max", max)):
        codebook = Codebook(replace(DEFAULT, aggregation=aggregation))
        codebook.decide("first", strings)
        codebook.learned(strings, None)
        codebook.decide("second", [BOX])
        codebook.learned([BOX], None)
        for text in ["Answer with a short phrase.", *strings]:
            expected = [reduce([literal(text, other) for other in strings]), literal(text, BOX)]
            assert codebook.similarity([text])[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "threshold", "reused"), [("mean", 0.9, False), ("mean", 0.3, True), ("max", 0.9, True)]
)
def test_paraphrases_dilute_the_mean(aggregation: str, threshold: float, reused: bool) -> None:
    """Why many-template sets have the threshold 0.3: even the very same set of strings is far from 0.9 on average."""
    paraphrases = [
        SHORT,
        "Give a single word or phrase as the answer.",
        "Reply to the question with one word or phrase.",
    ]
    codebook = Codebook(replace(DEFAULT, aggregation=aggregation, threshold=threshold))
    codebook.decide("first", paraphrases)
    codebook.learned(paraphrases, None)
    decision = codebook.decide("second", paraphrases)
    assert decision.reused == reused
    pairs = [[literal(one, other) for other in paraphrases] for one in paraphrases]
    rows = [max(row) if aggregation == "max" else sum(row) / 3 for row in pairs]
    assert decision.similarity == pytest.approx(sum(rows) / 3, abs=1e-12)


@pytest.mark.parametrize(("threshold", "groups"), [(0.0, [0] * 8), (1.5, list(range(8)))])
def test_extreme_thresholds_are_one_group_and_a_group_per_task(threshold: float, groups: list[int]) -> None:
    codebook = learn_coin(replace(DEFAULT, threshold=threshold))
    assert [decision.group for decision in codebook.decisions] == groups


def test_strings_are_distinct_and_capped() -> None:
    codebook = Codebook(replace(DEFAULT, max_strings=4, threshold=0.0))
    instructions = [f"word{index}" for index in range(10) for _ in range(3)]
    codebook.decide("first", instructions)
    codebook.learned(instructions, None)
    assert codebook.groups == [["word0", "word2", "word5", "word7"]]
    codebook.decide("second", ["word2", "new"])
    codebook.learned(["word2", "new"], None)
    assert codebook.groups == [["word0", "word2", "word5", "word7", "new"]]


def test_remembered_similarities_follow_the_codebook() -> None:
    codebook = Codebook(replace(DEFAULT, threshold=0.0))
    codebook.decide("first", [SHORT])
    codebook.learned([SHORT], None)
    assert codebook.similarity([SHORT, BOX, SHORT]).flatten().tolist() == pytest.approx([1.0, 0.0, 1.0])
    codebook.decide("second", [BOX])
    codebook.learned([BOX], None)
    assert codebook.similarity([SHORT, BOX]).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_a_codebook_goes_through_json_and_a_damaged_one_is_refused() -> None:
    codebook = learn_coin(TO_COLON)
    other = Codebook(TO_COLON)
    other.restore(codebook.to_json())
    assert (other.groups, other.decisions) == (codebook.groups, codebook.decisions)
    with pytest.raises(CheckpointError, match="no decisions"):
        other.restore({"groups": []})
    with pytest.raises(CheckpointError, match="cannot be read"):
        other.restore({"groups": [], "decisions": [{"task": "x"}]})


@pytest.mark.parametrize(
    ("field", "text"),
    [("last_line", "Box: the cat"), ("last_line_to_colon", "Box"), ("whole", "Look.\nBox: the cat")],
)
def test_compared_text(field: str, text: str) -> None:
    assert compared_text("Look.\nBox: the cat", field) == text  # type: ignore[arg-type]
    assert compared_text("", field) == ""  # type: ignore[arg-type]
