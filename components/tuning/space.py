"""What a sweep varies: fields of a run's configuration by dotted name, each with the values it takes.

    method.rank=grid(4, 8)                    every value, combined with every other grid
    method.rank=4,8                           the same
    training.optimizer.learning_rate=loguniform(1e-4, 1e-2)
    method=choice(sequential_lora, moelora)   drawn; `method` changes the method and brings its own options

The drawn ones are Ray Tune's search spaces of that name.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from components.core.errors import ConfigError
from components.core.options import listed
from components.training.config import RunConfig

Value = None | bool | int | float | str | tuple["Value", ...]
Values = dict[str, Value]  # by dotted field

GRID = "grid"
DRAWN = {
    name: getattr(tune, name)
    for name in ("choice", "uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint", "qrandint")
}
WHERE = ("run_id", "storage", "cluster", "tracking")  # say where a run happens, not what it does
_CALL = re.compile(r"(?P<kind>[a-z]+)\((?P<arguments>.*)\)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
MAX_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One field and its values: all of them (`kind` "grid"), or a distribution's arguments."""

    field: str
    kind: str
    arguments: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.kind != GRID and self.kind not in DRAWN:
            known = ", ".join((GRID, *DRAWN))
            raise ConfigError(f"the space of {self.field} is {self.kind}(...); known are {known}.")
        if not self.arguments:
            raise ConfigError(f"the space of {self.field} is empty; give at least one value, such as grid(4, 8).")
        if self.kind == GRID and len(set(self.arguments)) < len(self.arguments):
            raise ConfigError(f"the space of {self.field} names a value twice: {self.arguments}.")
        if self.kind != GRID:
            self.domain()

    def domain(self) -> Domain:
        """The distribution as Ray Tune has it; raises `ConfigError` for arguments that it cannot have."""
        try:
            domain = DRAWN[self.kind](*([list(self.arguments)] if self.kind == "choice" else self.arguments))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.field}={self.kind}{self.arguments} is not a search space ({error}).") from error
        if isinstance(domain, Float | Integer) and not domain.lower < domain.upper:
            raise ConfigError(f"{self.field}={self.kind}{self.arguments} is empty: its lower end comes first.")
        return domain

    def ends(self) -> tuple[Value, ...]:
        """Values that stand for all: if a configuration can have these, it can have the others."""
        if self.kind == GRID:
            return self.arguments
        domain = self.domain()
        if isinstance(domain, Categorical):
            return tuple(domain.categories)
        assert isinstance(domain, Float | Integer)
        if isinstance(domain, Integer):
            return domain.lower, domain.upper - 1
        return float(domain.lower), float(domain.upper)


def parse_axis(text: str) -> Axis:
    """`FIELD=KIND(ARGUMENTS)` or `FIELD=VALUE,VALUE`; values are Python literals or bare words."""
    field, equals, space = (part.strip() for part in text.partition("="))
    if not equals or not field or not space:
        raise ConfigError(f"{text!r} is not a search space; write FIELD=VALUES, such as method.rank=grid(4, 8).")
    call = _CALL.fullmatch(space)
    kind, inner = (call["kind"], call["arguments"]) if call else (GRID, space)
    try:
        listed = ast.parse(f"({inner},)" if inner.strip() else "()", mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"the values of {text!r} cannot be read ({error.msg}); separate them by commas.") from error
    assert isinstance(listed, ast.Tuple)
    return Axis(field=field, kind=kind, arguments=tuple(_value(node, text) for node in listed.elts))


def _value(node: ast.expr, text: str) -> Value:
    try:
        return ast.literal_eval(node)
    except ValueError:
        word = ast.unparse(node).replace(" ", "")
        if _WORD.fullmatch(word):
            return word
        raise ConfigError(f"{word!r} in {text!r} is not a value; give numbers, words, or texts in quotes.") from None


def orders_axis(words: Sequence[str], tasks: Sequence[str], *, seed: int) -> Axis:
    """Orders of a stream's tasks: `own`, `reversed`, `alphabetical`, or how many: its own and shuffled ones.

    Raises `ConfigError` for another word, for more orders than there are, and for one given twice.
    """
    own = tuple(tasks)
    named = {"own": own, "reversed": own[::-1], "alphabetical": tuple(sorted(own))}
    orders: list[tuple[str, ...]] = []
    for word in words:
        if word.isdecimal() and int(word):
            orders += _shuffled(own, int(word), seed)
        elif word in named:
            orders.append(named[word])
        else:
            raise ConfigError(f"orders has {word!r}; give a number of orders, or names: {', '.join(named)}.")
    if len(set(orders)) < len(orders):
        raise ConfigError(f"orders {' '.join(words)} lists the same order of {', '.join(own)} twice; remove one.")
    return Axis(field="stream.order", kind=GRID, arguments=tuple(orders))


def _shuffled(own: tuple[str, ...], count: int, seed: int) -> list[tuple[str, ...]]:
    """`own` and distinct others, the same for the same seed."""
    if count > math.factorial(len(own)):
        raise ConfigError(f"orders is {count}; {len(own)} tasks have {math.factorial(len(own))} orders.")
    random = np.random.default_rng(seed)
    orders = {own: None}
    while len(orders) < count:
        orders.setdefault(tuple(own[place] for place in random.permutation(len(own))))
    return list(orders)


def require_space(base: RunConfig, axes: Sequence[Axis]) -> None:
    """Raise `ConfigError` for a space that is empty, names a field twice or that some configuration cannot have."""
    if not axes:
        raise ConfigError("the sweep varies nothing; name at least one field, such as --space method.rank=grid(4,8).")
    doubled = [field for field, times in Counter(axis.field for axis in axes).items() if times > 1]
    if doubled:
        raise ConfigError(f"the space names {doubled[0]} twice; give each field one space.")
    for ends in itertools.product(*(axis.ends() for axis in axes)):
        configured(base, dict(zip((axis.field for axis in axes), ends, strict=True)))


def points(axes: Sequence[Axis], *, num_samples: int, seed: int) -> list[Values]:
    """Every combination of the grids, each with `num_samples` draws of the other fields (once if nothing is drawn)."""
    random = np.random.default_rng(seed)
    grids = [axis for axis in axes if axis.kind == GRID]
    drawn = [axis for axis in axes if axis.kind != GRID]
    found: list[Values] = []
    for combination in itertools.product(*(axis.arguments for axis in grids)):
        for _ in range(num_samples if drawn else 1):
            values: Values = dict(zip((axis.field for axis in grids), combination, strict=True))
            values |= {axis.field: plain(axis.domain().sample(random_state=random)) for axis in drawn}
            found.append({axis.field: values[axis.field] for axis in axes})
    return found


def plain(value: object) -> Value:
    """A drawn value as Python's own type; floats keep six digits, which is more than matters and readable."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list):
        value = tuple(value)
    assert value is None or isinstance(value, bool | int | float | str | tuple), value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def configured(base: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """`base` with these fields; raises `ConfigError` for unknown fields and for values that a field cannot have."""
    config = base
    # A method's options follow the backbone (`with_method`), and its fields are those of the method chosen: backbone
    # first, then the method, then everything else.
    for field in sorted(values, key=lambda field: (field != "backbone.name", field != "method")):
        if field.partition(".")[0] in WHERE:
            raise ConfigError(f"{field} says where a run happens and cannot be swept; vary what it does.")
        if field == "method":
            config = config.with_method(str(values[field]))
        else:
            config = _changed(config, field.split("."), values[field], field)
    return config


HolderT = TypeVar("HolderT")


def _changed(holder: HolderT, path: list[str], value: Value, field: str) -> HolderT:
    """The dataclass `holder` with the field at `path` replaced."""
    name, *rest = path
    names = [item.name for item in dataclasses.fields(holder)]  # type: ignore[arg-type]
    if name not in names:
        raise ConfigError(f"the space names {field}, but there is no field {name!r}; there are {listed(name, names)}")
    if rest:
        inner = getattr(holder, name)
        if not dataclasses.is_dataclass(inner):
            raise ConfigError(f"the space names {field}, but {name} has no fields of its own.")
        return replace(holder, **{name: _changed(inner, rest, value, field)})  # type: ignore[type-var]
    return replace(holder, **{name: value})  # type: ignore[type-var]


def trial_name(values: Mapping[str, Value]) -> str:
    """A name for a folder, the same for the same values: `rank-8_slots_per_task-4`."""
    last = [field.rpartition(".")[2] for field in values]
    texts = [_NOT_IN_NAMES.sub("-", _text(value)) for value in values.values()]
    name = "_".join(f"{field}-{text}" for field, text in zip(last, texts, strict=True))
    whole = len(set(last)) == len(last) and texts == [str(value) for value in values.values()]
    if whole and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
    return f"{name[:MAX_NAME]}_{digest}"


def _text(value: Value) -> str:
    return "-".join(_text(each) for each in value) if isinstance(value, tuple) else str(value)


def without(values: Mapping[str, Value], fields: Iterable[str]) -> Values:
    """The values of the other fields."""
    return {field: value for field, value in values.items() if field not in set(fields)}
