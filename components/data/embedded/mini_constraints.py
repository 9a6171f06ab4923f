"""mini-constraints: 36 instructions that compose one to four constraints a program can check; text only.

Three kinds of instruction (a list, a sentence, steps in order), in the spirit of MIA-Bench's layered and SIFo's
sequential instructions. Every row has a reply that meets all of its constraints, so none is impossible.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from components.data.rows import Row, Turn
from components.data.suite import row_id
from components.metrics.constraints import Constraint

ROWS = 36
MOST = 4  # constraints of one row
_LISTS = {
    "animals": ("cat", "dog", "horse", "cow", "sheep", "goat", "lion", "bear", "fox", "owl"),
    "colors": ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "gray", "orange"),
    "foods": ("bread", "rice", "soup", "cheese", "apple", "egg", "fish", "salad", "pasta", "cake"),
}
_SENTENCES = {
    "the sea": ("waves", "salt", "deep"),
    "a garden": ("flowers", "green", "quiet"),
    "winter": ("snow", "cold", "white"),
    "a market": ("fruit", "people", "loud"),
}
_STEPS = {
    "tea": ("boil the water", "add the tea", "pour the milk"),
    "a sandwich": ("cut the bread", "add the cheese", "close the sandwich"),
    "a salad": ("wash the leaves", "cut the tomato", "mix the oil"),
    "toast": ("slice the bread", "heat the toaster", "spread the butter"),
}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An instruction, what it may also ask for, and a reply that meets all of that."""

    task: str
    offers: tuple[tuple[str, Constraint], ...]  # how the instruction says it, and the constraint; the first is kept
    reply: str


def make_rows() -> list[Row]:
    """All rows in their order: lists, sentences and steps by turns, with one to four constraints by turns."""
    return [_make(number) for number in range(ROWS)]


def _make(number: int) -> Row:
    rng = Random(f"mini-constraints/{number}")
    kind, count = tuple(_MAKERS)[number % len(_MAKERS)], 1 + number // len(_MAKERS) % MOST
    draft = _MAKERS[kind](rng)
    first, *others = draft.offers
    chosen = [first, *rng.sample(others, count - 1)]
    instruction = " ".join([draft.task, *(said for said, _ in chosen)])
    return Row(
        sample_id=row_id(f"{count}-constraints" if count > 1 else "1-constraint", kind, number),
        task="mini-constraints",
        split="test",
        turns=(Turn(speaker="human", text=instruction), Turn(speaker="gpt", text=draft.reply)),
        answers=tuple(str(constraint) for _, constraint in chosen),
        metric="constraints",
        source="generated",
    )


def _list(rng: Random) -> Draft:
    topic = rng.choice(sorted(_LISTS))
    count, upper, as_json = rng.randint(2, 5), rng.random() < 0.5, rng.random() < 0.5
    *items, avoided = rng.sample(_LISTS[topic], count + 1)
    wanted = items[rng.randrange(count)]
    shown = [item.upper() if upper else item for item in items]
    form = (
        (f"Write a JSON list of {count} strings and nothing else.", _constraint("json_list", count))
        if as_json
        else (f'Write {count} lines that each begin with "- ".', _constraint("items", count))
    )
    case = "upper" if upper else "lower"
    offers = (
        form,
        (f'Include the word "{wanted}".', _constraint("include", wanted)),
        (f'Do not use the word "{avoided}".', _constraint("avoid", avoided)),
        (f"Use {case} case letters only.", _constraint("case", case)),
        (f'Name "{items[0]}" before "{items[1]}".', _constraint("order", f"{items[0]} > {items[1]}")),
    )
    reply = json.dumps(shown) if as_json else "\n".join(f"- {item}" for item in shown)
    return Draft(task=f"Name {count} {topic}.", offers=offers, reply=reply)


def _sentence(rng: Random) -> Draft:
    topic = rng.choice(sorted(_SENTENCES))
    first, wanted, last = rng.sample(_SENTENCES[topic], 3)
    lower = rng.random() < 0.5
    text = f"{first} and {wanted} are what I think of, and it is {last}."
    most = rng.randint(14, 18)
    offers = (
        (f"Use at most {most} words.", _constraint("max_words", most)),
        (f'Begin with the word "{first}".', _constraint("starts_with", first)),
        (f'End with the word "{last}".', _constraint("ends_with", last)),
        (f'Include the word "{wanted}".', _constraint("include", wanted)),
        ("Use at least 5 words.", _constraint("min_words", 5)),
        ('Do not use the word "very".', _constraint("avoid", "very")),
        (f"Use {'lower' if lower else 'upper'} case letters only.", _constraint("case", "lower" if lower else "upper")),
    )
    reply = text.lower() if lower else text.upper()
    return Draft(task=f"Write one sentence about {topic}.", offers=offers, reply=reply)


def _steps(rng: Random) -> Draft:
    thing = rng.choice(sorted(_STEPS))
    steps = _STEPS[thing]
    said = ", ".join(f'"{step}"' for step in steps)
    most = rng.randint(20, 30)
    offers = (
        (f"Say these steps in this order: {said}.", _constraint("order", " > ".join(steps))),
        (f'Write {len(steps)} lines that each begin with "- ".', _constraint("items", len(steps))),
        (f"Use at most {most} words.", _constraint("max_words", most)),
        ('Do not use the word "then".', _constraint("avoid", "then")),
        ("Use lower case letters only.", _constraint("case", "lower")),
    )
    return Draft(task=f"Explain how to make {thing}.", offers=offers, reply="\n".join(f"- {step}" for step in steps))


def _constraint(name: str, value: object) -> Constraint:
    return Constraint(name=name, value=str(value))


_MAKERS: dict[str, Callable[[Random], Draft]] = {"list": _list, "sentence": _sentence, "steps": _steps}
