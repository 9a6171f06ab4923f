"""Rows become tensors: conversation and pictures in, token ids, answer labels and pictures' tensors out.

Runs inside Ray Data workers: an `Encoder` holds only its configuration and reads tokenizer and image processor (never
weights) at first use. A whole conversation is tokenised once and labels are placed by character spans, so ids equal
those of the plain string and no token is ever split differently for the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from components.core.errors import ConfigError, DataError
from components.data.batch import IGNORE, Example, Picture
from components.data.formats.pictures import open_image
from components.data.rows import Row, Turn
from components.models.config import BackboneConfig
from components.models.conversation import Choice, Rendered, Said, Shown
from components.models.cutting import kept_of_training, without_middles
from components.models.families.base import Family, Layout
from components.models.source import model_source
from components.models.templates import choose_template
from components.models.token_counts import Counting, TokenCounter
from components.models.turns import in_parts, prompt_turns, training_turns, without_last_answer
from components.models.user_text import TextTokenizer


class Encoder:
    """Encodes rows for one backbone. Cheap to build and to send: it pickles as its configuration."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def __reduce__(self) -> tuple[type[Encoder], tuple[BackboneConfig]]:
        return Encoder, (self.config,)

    @property
    def pad_id(self) -> int:
        tokenizer = self._parts.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        assert isinstance(pad, int)
        return pad

    @property
    def family(self) -> Family:
        """What is known of the backbone's type."""
        return self._parts.family

    @property
    def end_id(self) -> int:
        """The token that training teaches as the end of an answer."""
        return self._parts.end_id

    @property
    def template(self) -> tuple[str, str]:
        """Name of the conversation template in use, and why it is this one."""
        return self._parts.choice.name, self._parts.choice.why

    def decode(self, ids: list[int] | Tensor) -> str:
        """Text of generated ids, without special tokens and surrounding whitespace."""
        text = self._parts.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def training_example(self, row: Row, *, pictures: Sequence[Prepared] | None = None) -> Example:
        """The whole conversation; labels on every answer including its end-of-turn token, IGNORE elsewhere.

        Answers of weight 0 are context and have no label; other weights than 1 come along. With `pictures`, prepared
        before (cached features), the row's own are not decoded. Raises `DataError` naming the row when turns do not
        alternate, an answer is empty, no answer has a weight, a picture is broken, or the row exceeds `max_length` and
        may not or cannot be cut.
        """
        pictures = self.prepared(row) if pictures is None else pictures
        return self._example(row, self._encoded_training(row, pictures), pictures, answering=False)

    def prompt_example(self, row: Row, *, pictures: Sequence[Prepared] | None = None) -> Example:
        """The conversation without its last answer, which the model is to generate; no labels."""
        pictures = self.prepared(row) if pictures is None else pictures
        return self._example(row, self._encoded_prompt(row, pictures), pictures, answering=True)

    def prepared(self, row: Row) -> list[Prepared]:
        """The row's pictures, decoded, as the model takes them."""
        self._check_counts(row)
        return [self.prepared_picture(image, sample_id=row.sample_id) for image in row.images]

    def prepared_picture(self, image: bytes, *, sample_id: str) -> Prepared:
        """One picture of a row, decoded, as the model takes it."""
        layout, tensors = self._parts.family.picture(open_image(image, sample_id=sample_id))
        return Prepared(layout=layout, tensors=tensors)

    def without_tensors(self, row: Row) -> list[Prepared]:
        """The row's pictures known by their sizes alone, which is all that counting and cutting needs."""
        self._check_counts(row)
        found: list[Prepared] = []
        for image, width, height in row.pictures:
            if width is not None and height is not None:
                found.append(Prepared(layout=self._parts.family.layout(width, height), tensors={}))
            elif image is not None:
                found.append(self.prepared_picture(image, sample_id=row.sample_id))
        return found

    def excess(self, row: Row) -> Excess | None:
        """What a row has more of than the family takes; None for a row that can be encoded."""
        family, asked = self._parts.family, sum(turn.speaker == "human" for turn in row.turns)
        limits = (family.max_pictures, len(row.pictures), "picture"), (family.max_questions, asked, "question")
        for most, found, what in limits:
            if most is not None and found > most:
                taken = f"no {what}s" if most == 0 else f"at most {most} {what}{'s' if most > 1 else ''} in a row"
                return Excess(found=f"{found} {what}{'s' if found > 1 else ''}", taken=taken)
        return None

    def num_tokens(self, row: Row, *, answering: bool) -> int:
        """Tokens of a row before any cut: as a prompt to be answered, or the whole conversation."""
        pictures = self.without_tensors(row)
        encoded = self._encoded_prompt(row, pictures) if answering else self._encoded_training(row, pictures)
        return len(encoded.ids)

    def nums_tokens(self, rows: Sequence[Row], *, answering: bool) -> list[int]:
        """`num_tokens` of each row: the same numbers and errors, at a third of the time."""
        given: list[Counting] = []
        for row in rows:
            pictures = self.without_tensors(row)
            turns = prompt_turns(row) if answering else training_turns(row)
            said = in_parts(row, turns, _texts(pictures))
            rendered = self._parts.choice.render(said, answering)
            more = sum(run - 1 for picture in pictures for run in picture.layout.runs)
            given.append(Counting(said, rendered, len(self._start(rendered)) + more))
        return self._parts.counter.counts(
            given, answering=answering, in_full=lambda index: self.num_tokens(rows[index], answering=answering)
        )

    def num_labels(self, row: Row) -> int:
        """Tokens of a whole conversation that are learned, before any cut."""
        encoded = self._encoded_training(row, self.without_tensors(row))
        learned = {number for number, turn in enumerate(row.turns[1::2]) if turn.weight}
        return sum(answer in learned for answer in encoded.answers)

    def reply_ids(self, row: Row, answer: str) -> list[int]:
        """The tokens of the reply `answer` to `row`, tokenised as in training, without the end token."""
        turns = (*without_last_answer(row), Turn(speaker="gpt", text=answer))
        encoded = self._encoded(row, turns, self.without_tensors(row), answering=False)
        last = max(encoded.answers)
        return [token for token, number in zip(encoded.ids, encoded.answers, strict=True) if number == last][:-1]

    def text(self, row: Row, *, answering: bool) -> str:
        """The templated string of a row, each picture's tokens written once (for people and tests)."""
        turns = without_last_answer(row) if answering else row.turns
        return self._parts.choice.render(in_parts(row, turns, _texts(self.without_tensors(row))), answering).text

    def _encoded_training(self, row: Row, pictures: Sequence[Prepared]) -> _Encoded:
        return self._encoded(row, training_turns(row), pictures, answering=False)

    def _encoded_prompt(self, row: Row, pictures: Sequence[Prepared]) -> _Encoded:
        return self._encoded(row, prompt_turns(row), pictures, answering=True)

    def _encoded(self, row: Row, turns: tuple[Turn, ...], pictures: Sequence[Prepared], *, answering: bool) -> _Encoded:
        """Ids of the conversation, with the pictures' tokens and the tokenizer's prefix."""
        parts = self._parts
        self._check_counts(row)
        rendered = parts.choice.render(in_parts(row, turns, _texts(pictures)), answering)
        tokens = parts.tokenise(rendered)
        start, image_id = self._start(rendered), parts.image_id
        ids, said, answers = list(start), [-1] * len(start), [-1] * len(start)
        runs = [run for picture in pictures for run in picture.layout.runs]
        if tokens.ids.count(image_id) != len(runs):
            raise ConfigError(
                f"the tokenizer of backbone {self.config.name!r} does not know the image token of its config.json; "
                "give a complete model directory."
            )
        repeats = iter(runs)
        for token, text, answer in zip(tokens.ids, tokens.said, tokens.answers, strict=True):
            times = next(repeats) if token == image_id else 1
            ids += [token] * times
            said += [text] * times
            answers += [answer] * times
        if not answering and len(set(answers) - {-1}) != len(rendered.answers):
            raise DataError(f"row {row.sample_id}: an answer has no token of its own; remove the row or reword it.")
        return _Encoded(ids=ids, said=said, answers=answers)

    def _start(self, rendered: Rendered) -> list[int]:
        """The tokenizer's prefix. As processors do: a template that writes the start token gets no second one."""
        bos = self._parts.tokenizer.bos_token
        return [] if isinstance(bos, str) and rendered.text.startswith(bos) else self._parts.start_ids

    def _check_counts(self, row: Row) -> None:
        if (excess := self.excess(row)) is not None:
            raise DataError(
                f"row {row.sample_id} has {excess.found}, but backbone {self.config.name!r} takes {excess.taken}; "
                "leave the row out or choose another backbone."
            )

    def _example(self, row: Row, encoded: _Encoded, pictures: Sequence[Prepared], *, answering: bool) -> Example:
        ids = encoded.ids
        weights = [0.0] * len(ids)
        if not answering:
            of_answers = [turn.weight for turn in row.turns if turn.speaker == "gpt"]
            weights = [of_answers[answer] if answer >= 0 else 0.0 for answer in encoded.answers]
        places = range(len(ids))
        if len(ids) > self.config.max_length:
            places = self._places_within_limit(row, encoded, weights, answering=answering)
        ids, weights = [ids[place] for place in places], [weights[place] for place in places]
        return Example(
            sample_id=row.sample_id,
            instruction=row.instruction,
            input_ids=torch.tensor(ids, dtype=torch.long),
            labels=torch.tensor(
                [token if weight else IGNORE for token, weight in zip(ids, weights, strict=True)], dtype=torch.long
            ),
            weights=torch.tensor(weights) if set(weights) - {0.0, 1.0} else None,
            pictures=tuple(Picture(tensors=each.tensors, num_tokens=sum(each.layout.runs)) for each in pictures),
        )

    def _places_within_limit(
        self, row: Row, encoded: _Encoded, weights: list[float], *, answering: bool
    ) -> Sequence[int]:
        """Positions of the tokens that stay of a row that is too long; `DataError` when it may not or cannot be cut."""
        size, limit = len(encoded.ids), self.config.max_length
        what = f"row {row.sample_id} takes {size} tokens, more than backbone.max_length = {limit}"
        if self.config.too_long != "cut":
            raise DataError(f"{what}; shorten it, raise the limit, or set backbone.too_long to cut or skip.")
        picture = [place for place, token in enumerate(encoded.ids) if token == self._parts.image_id]
        said = [place for place, text in enumerate(encoded.said) if text >= 0]
        if answering:
            kept = without_middles(size, limit, said)
        else:
            labelled = [place for place, weight in enumerate(weights) if weight]
            asked = [place for place in said if encoded.answers[place] < 0]
            kept = kept_of_training(size, limit, picture=picture, labelled=labelled, asked=asked)
        if kept is None:
            raise DataError(f"{what}, and cannot be cut without losing its picture or its answer; leave it out.")
        return kept

    @cached_property
    def _parts(self) -> _Parts:
        return _load_parts(self.config)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture of a row: its place in the text, and its tensors or its cached features."""

    layout: Layout
    tensors: dict[str, Tensor]


class Excess(NamedTuple):
    """That a row has "2 pictures" where the backbone takes "at most 1 picture in a row"."""

    found: str
    taken: str


class _Encoded(NamedTuple):
    """A conversation of T tokens before any cut."""

    ids: list[int]
    said: list[int]  # the number of the user's text that a token belongs to, or -1
    answers: list[int]  # the number of the answer, with its end token, that a token belongs to, or -1


class _Parts(NamedTuple):
    family: Family
    tokenizer: PreTrainedTokenizerFast
    choice: Choice
    tokenise: TextTokenizer
    start_ids: list[int]  # the tokenizer's prefix of every text
    end_id: int
    image_id: int  # transformers' configurations are slow to ask, and every token of every row does
    counter: TokenCounter


def build_encoder(config: BackboneConfig) -> Encoder:
    """The encoder of `config`'s backbone; reads tokenizer and image processor now, so mistakes show at once."""
    encoder = Encoder(config)
    if encoder.family.takes_pictures() and sum(encoder.family.layout(64, 64).runs) < 1:
        raise ConfigError(f"backbone {config.name!r} has no tokens for pictures; give a model of a supported type.")
    return encoder


@lru_cache(maxsize=4)
def _load_parts(config: BackboneConfig) -> _Parts:
    source = model_source(config)
    family = source.family()
    tokenizer = family.files.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"backbone {config.name!r} has no fast tokenizer (tokenizer.json); labels need its offsets.")
    expected = source.template or family.template
    choice = choose_template(config.template, family.files, placeholder=family.placeholder, expected=expected)
    end_id = cast(int, tokenizer.convert_tokens_to_ids(choice.end))
    tokenise = TextTokenizer(tokenizer, _controls(family, choice))
    tokenise.finds_controls = _learned_end(tokenise, choice) == end_id
    if _learned_end(tokenise, choice) != end_id:
        raise ConfigError(
            f"backbone {config.name!r} does not read {choice.end} as one token, so answers would never end; choose "
            "another backbone.template."
        )
    return _Parts(
        family=family,
        tokenizer=tokenizer,
        choice=choice,
        tokenise=tokenise,
        start_ids=_start_ids(tokenizer),
        end_id=end_id,
        image_id=family.image_token_id,
        counter=TokenCounter(tokenise, end_id=end_id),
    )


def _controls(family: Family, choice: Choice) -> frozenset[int]:
    """Tokens that user text must not become: special ones, and added ones of the template (some are not marked)."""
    tokenizer = family.files.tokenizer
    shown = [Shown(family.layout(64, 64).text)] if family.takes_pictures() else []
    example = choice.render((Said("human", (*shown, "?")), Said("gpt", ("!",))), True)
    added = tokenizer.added_tokens_decoder.items()
    written = (token for token, name in added if name.content.strip() and name.content in example.text)
    special = (token for token, name in added if name.special)
    image = {family.image_token_id} if family.takes_pictures() else set[int]()
    return frozenset({*image, *tokenizer.all_special_ids, *written, *special})


def _learned_end(tokenise: TextTokenizer, choice: Choice) -> int:
    """The last token of an answer in the middle of a conversation."""
    talk = [Said("human", ("a",)), Said("gpt", ("b",)), Said("human", ("c",)), Said("gpt", ("d",))]
    tokens = tokenise(choice.render(talk, False))
    return [token for token, answer in zip(tokens.ids, tokens.answers, strict=True) if answer == 0][-1]


def _start_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before a text, usually its start token; what it appends would end every prompt."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return whole[: whole.index(plain[0])]


def _texts(pictures: Sequence[Prepared]) -> list[str]:
    """What stands for each picture in a prompt."""
    return [picture.layout.text for picture in pictures]
