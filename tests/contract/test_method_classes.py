"""What the class of a method declares: its card, which becomes a documentation page, and no flag of an old name."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest

from components.core.errors import ConfigError
from components.methods import METHODS
from components.methods.base import CARD, Method, MethodConfig
from components.methods.sequential_lora import SequentialLoraConfig

MORE = {"Cost", "Features", "Grouping", "Guarantee", "Text-only samples", "Not known", "Beware", "Controls", "ZeRO"}
PLUMBING = {
    *(
        "card",
        "is_routed",
        "is_trainable",
        "owned_by_none",
        "rows_leave",
        "rows_join",
        "parameters",
        "num_slots",
        "structure",
        "load_task_state",
    )
}
HOOKS = {name for name in vars(Method) if not name.startswith("_")} - PLUMBING


def class_of(name: str) -> type[Method]:
    return type(METHODS[name].tiny().build(seed=0))


def test_every_card_has_the_same_sections_in_the_same_order() -> None:
    for name in METHODS:
        card = class_of(name).card()
        assert [section for section in card if section in CARD] == list(CARD), name
        assert card.keys() <= {*CARD, *MORE}, name
        assert all(card.values()), name
        assert all(line == line.rstrip() for text in card.values() for line in text.splitlines()), name


def test_a_card_names_exactly_the_hooks_that_its_class_overrides() -> None:
    for name in METHODS:
        kind = class_of(name)
        named = {word for word in re.findall(r"\w+", kind.card()["Overrides"]) if word in HOOKS}
        assert named == HOOKS & vars(kind).keys(), name


def test_a_card_is_the_docstring_without_its_title_and_margin() -> None:
    class Toy(Method):
        """Toy: a title with a colon.

        Paper: none,
            really.
        Objective: the loss,
                W = 0
            - a point
        """

    assert Toy.card() == {"Paper": "none,\nreally.", "Objective": "the loss,\n    W = 0\n- a point"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("draws", "is_stochastic"),
        ("trains", "is_trainable"),
        ("routes", "is_routed"),
        ("learns_from", "data_scope"),
        ("survey_share", "calibration_share"),
    ],
)
def test_a_config_with_an_old_name_is_refused_when_it_is_defined(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"^Mine declares '{old}', which is now called '{new}'; rename it"):
        type("Mine", (SequentialLoraConfig,), {"name": "mine", old: False})


def test_a_method_with_an_old_name_is_refused_when_it_is_defined() -> None:
    with pytest.raises(ConfigError, match="Mine declares 'survey', which is now called 'calibrate'; rename it"):

        class Mine(Method):
            def survey(self) -> None: ...


def test_todays_names_are_taken() -> None:
    class Mine(MethodConfig):
        name: ClassVar[str] = "mine"
        is_stochastic: ClassVar[bool] = False

    assert not Mine.is_stochastic
