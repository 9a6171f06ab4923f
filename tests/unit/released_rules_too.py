"""The scoring rules of MLLM-CL, TRACE, UCIT, ChartQA and general suites once more, written naively from descriptions.

Nothing here imports the scorers, and nothing is shared with them; see `released_rules` for CoIN's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def item(task: str, reply: str, record: Record) -> float:
    benchmark, _, name = task.rpartition("/")
    if task == "chartqa":
        given = record.get("answers", [record.get("answer")])
        return max(chart(reply, answer) for answer in given)
    if benchmark == "ucit":
        return float(reply.upper() == record["answer"].upper())
    if benchmark == "mllm-dcl" and reply.find("Unanswerable") >= 0:
        return 0.0
    return {
        "remote-sensing": domain,
        "driving": domain,
        "medical": lambda text, one: float(text.lower().find(one["answer"].lower()) >= 0),
        "finance": lambda text, one: float(without(text.lower(), " .") == one["answer"].lower()),
        "science": science,
        "ocr": ocr,
        "perception": lambda text, one: float(
            without(one["answer"].lower().strip(), " \n.") in without(text.lower().strip(), " \n.")
        ),
        "c-stance": same,
        "fomc": same,
        "numglue-cm": same,
        "numglue-ds": same,
        "scienceqa": lambda text, one: float(len(text) > 0 and text[0] == one["answer"][0]),
    }[name](reply, record)


def without(text: str, signs: str) -> str:
    return "".join(sign for sign in text if sign not in signs)


def same(reply: str, record: Record) -> float:
    return 0.0 if reply == "" else float(reply == record["answer"])


def domain(reply: str, record: Record) -> float:
    text, answer = reply.lower(), record["answer"].lower()
    if len(answer.split(" ")) > 1:
        return float(len(text.split(answer)) > 1)
    answer = without(answer, ".")
    if len(text.split(" ")) == 1:
        return float(answer in text)
    for at in range(len(text) + 1):
        if text[at : at + len(answer)] == answer:
            before, behind = text[at - 1 : at] if at else "", text[at + len(answer) : at + len(answer) + 1]
            if before == " " or (behind and behind in " .,"):
                return 1.0
    return 0.0


def science(reply: str, record: Record) -> float:
    text, answer = reply.lower(), record["answer"].lower()
    if record["image"].split("/")[-1].split("_")[0] in ("AI2D", "TQA", "VQA", "SciVerse"):
        return float(text == answer)
    if "Which states" in record["text"]:
        hits = 0
        for state in answer.split(","):
            for said in text.split(","):
                if said == state:
                    hits += 1
                    break
        return hits / len(answer.split(","))
    return float(answer in text)


def ocr(reply: str, record: Record) -> float:
    answers = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    formula = record.get("answer_type") == "Handwritten Mathematical Expression Recognition"
    for answer in answers:
        if formula:
            if without(answer.strip(), " \n") in without(reply.strip(), " \n"):
                return 1.0
        elif without(answer.lower().strip(), "\n") in without(reply.lower().strip(), "\n"):
            return 1.0
    return 0.0


def chart(reply: str, answer: str) -> float:
    def value(text: str) -> float | None:
        share = text[-1:] == "%"
        while share and text[-1:] == "%":
            text = text[:-1]
        try:
            return float(text) / 100 if share else float(text)
        except ValueError:
            return None

    one, two = value(reply), value(answer)
    if one is None or two is None or two == 0:
        return float(reply.lower() == answer.lower())
    return float(abs(one - two) / abs(two) <= 0.05)


def four_letters(reply: str, answer: str) -> float:
    """MME: yes or no as the whole reply, else inside its first four letters, yes before no."""
    text = reply.strip().lower()
    if text in ("yes", "no"):
        said = text
    elif "yes" in text[:4]:
        said = "yes"
    elif "no" in text[:4]:
        said = "no"
    else:
        said = "other"
    return float(said == answer.lower())


def mmmu_letter(reply: str, options: dict[str, str]) -> str | None:
    """MMMU: the last "(X)", else the last " X ", else the last of the options' words in replies of over five words."""
    for sign in (",", ".", "!", "?", ";", ":", "'"):
        while reply.startswith(sign):
            reply = reply[1:]
        while reply.endswith(sign):
            reply = reply[:-1]
    reply = " " + reply + " "
    for left, right in (("(", ")"), (" ", " ")):
        last, chosen = -1, None
        for letter in options:
            for at in range(len(reply)):
                if reply[at : at + 3] == left + letter + right and at > last:
                    last, chosen = at, letter
        if chosen is not None:
            return chosen
    if len(reply.split()) <= 5:
        return None
    last, chosen = -1, None
    for letter, words in options.items():
        for at in range(len(reply)):
            if reply.lower()[at:].startswith(words.lower()) and at > last:
                last, chosen = at, letter
    return chosen


def llava_science(reply: str) -> str:
    """LLaVA's ScienceQA: one letter, a letter with ". " behind, or "The answer is X" and any sign, once."""
    if reply in ("A", "B", "C", "D", "E"):
        return reply
    if len(reply) >= 3 and reply[0] in "ABCDE" and reply[1:3] == ". ":
        return reply[0]
    found, words = [], "The answer is "
    at = 0
    while (at := reply.find(words, at)) >= 0:
        letter, sign = reply[at + len(words) : at + len(words) + 1], reply[at + len(words) + 1 : at + len(words) + 2]
        if letter and letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" and sign not in ("", "\n"):
            found.append(letter)
        at += len(words)
    return found[0] if len(found) == 1 else "FAILED"


def edit_percent(one: str, other: str) -> float:
    """100 (1 - insertions and deletions / both lengths), by the longest common subsequence."""
    above = [0] * (len(other) + 1)
    for left in one:
        row = [0]
        for at, right in enumerate(other, start=1):
            row.append(above[at - 1] + 1 if left == right else max(above[at], row[-1]))
        above = row
    return 200.0 * above[-1] / (len(one) + len(other)) if one or other else 100.0


def rouge_sentences(hypothesis: str, reference: str) -> float:
    """PyPI rouge's summary-level ROUGE-L: of every reference sentence the union over the hypothesis' sentences of their
    common subsequence with it, all as sets of words; F of its size over both sides' different words."""
    given = [sentence.split() for sentence in hypothesis.split(".") if sentence]
    wanted = [sentence.split() for sentence in reference.split(".") if sentence]
    given, wanted = [one or [""] for one in given], [one or [""] for one in wanted]
    union: set[str] = set()
    for target in wanted:
        for sentence in given:
            union |= set(subsequence(target, sentence))
    words = ({word for one in given for word in one}, {word for one in wanted for word in one})
    precision, recall = len(union) / len(words[0]), len(union) / len(words[1])
    return 2 * precision * recall / (precision + recall + 1e-8)


def subsequence(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence; of equal ones, the one that walking back from the end and leftwards gives."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
    i, j, found = len(one), len(other), []
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.append(one[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
