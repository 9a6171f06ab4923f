"""Finding a release's files below the root and reading its fields, with one sentence for what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from components.core.errors import DataError
from components.data.problems import ItemError


def find(root: Path, names: Iterable[str], layout: str) -> str:
    """The first of the named files or folders that exists, as a path below `root`; names may have * in the last part.

    Raises `DataError` naming what was looked for and the `layout` that is expected.
    """
    names = list(names)
    for name in names:
        folder, _, last = name.rpartition("/")
        for path in sorted((root / folder).glob(last)) if "*" in last else [root / name]:
            if path.exists():
                return path.relative_to(root).as_posix()
    raise DataError(f"{root} has none of {', '.join(names)}; expected is {layout}.")


def below(folder: str, name: str) -> str:
    """`name` inside `folder`, both below the root."""
    return name if folder in ("", ".") else f"{folder}/{name}"


def roots(*names: str) -> tuple[str, ...]:
    """Prefixes of folders where a release may be: each of `names`, or the root itself."""
    return (*(f"{name}/" for name in names), "")


def text_of(item: dict[str, object], key: str) -> str:
    """A field that must be a text with words in it; raises `ItemError`."""
    value = item.get(key)
    if value is None:
        raise ItemError("missing field", f'the field "{key}" is missing')
    if not isinstance(value, str) or not value.strip():
        raise ItemError("wrong field", f'"{key}" must be a text that is not empty, this is {value!r:.60}')
    return value.strip()


def id_of(item: dict[str, object], *keys: str) -> str:
    """The first of the fields `keys` that is there, a text or a whole number; raises `ItemError`."""
    for key in keys:
        value = item.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ItemError("wrong field", f'"{key}" must be a text or a whole number, this is {value!r:.60}')
        return str(value).strip()
    names = " or ".join(f'"{key}"' for key in keys)
    raise ItemError("missing field", f"the field {names} is missing")


def answers_of(item: dict[str, object], *keys: str) -> tuple[str, ...]:
    """Accepted answers in the first of the fields `keys` that is there: a text, a number, or a list of them.

    Releases vary between these forms. Raises `ItemError` when there is no answer, or an empty one.
    """
    value = next((item[key] for key in keys if item.get(key) is not None), None)
    given = value if isinstance(value, list) else [value]
    answers: list[str] = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ItemError("empty answer", f'"{keys[0]}" must hold at least one text, this is {value!r:.60}')
        answers.append(str(one).strip())
    if not answers or not all(answers):
        raise ItemError("empty answer", f'"{keys[0]}" has no answer or an empty one')
    return tuple(answers)
