"""Pages that mkdocs makes from the code and the records, so that no second copy of them can grow old.

- methods/NAME.md: a method's card (the docstring of its class) and its options.
- options.md: the options of a run.
- contributing.md and changelog.md: the files at the root of the repository.
- `<!-- layers -->` in a page: the layers of the import rules.
- `<!-- families -->` in a page: what the tests found of every model type, from docs/results/families.json.
- `<!-- report: FOLDER -->` in a page: what `report.py docs/results/FOLDER/*.json --markdown` prints.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a hook is imported by its path

from components.methods import METHODS  # noqa: E402
from components.methods.base import MethodConfig  # noqa: E402
from components.training.config import RunConfig  # noqa: E402

FORMULA = re.compile(r"=|<-| \* |sum_")
REPORT = re.compile(r"<!-- report: (\S+) -->")
BOUNDS = (("ge", "≥"), ("gt", "&gt;"), ("le", "≤"), ("lt", "&lt;"))
LAYERS, FAMILIES = "<!-- layers -->", "<!-- families -->"
STEPS = ("prepare", "train", "evaluate", "resume", "export")


def on_config(config: MkDocsConfig) -> None:
    """Every method has its place in the menu."""
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] += [{name: f"methods/{name}.md"} for name in METHODS]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {f"methods/{name}.md": method_page(kind) for name, kind in METHODS.items()}
    pages["options.md"] = options_page()
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables of recorded runs and the picture of the layers where a page asks for them; link the methods' names."""
    if page.file.src_uri == "methods/index.md":
        return re.sub(r"(?m)^\| `(\w+)`", r"| [`\1`](\1.md)", markdown)
    markdown = REPORT.sub(lambda found: report(found[1]), markdown)
    if FAMILIES in markdown:
        markdown = markdown.replace(FAMILIES, families())
    return markdown.replace(LAYERS, layers()) if LAYERS in markdown else markdown


def layers() -> str:
    """The first of the import rules, a row a layer, below what runs."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    rows = [row.split(" | ") for row in ("pipelines", *rules[0]["layers"])]
    boxes = ["".join(f"<span>{name}</span>" for name in row) for row in rows]
    return '<div class="layers">' + "".join(f"<div>{box}</div>" for box in boxes) + "</div>"


def families() -> str:
    """A row a tiny checkpoint, a column a step: which kinds of methods the tests saw pass."""
    found = json.loads((ROOT / "docs" / "results" / "families.json").read_text(encoding="utf-8"))
    rows = [
        f"| `{name}` | {' | '.join(seen(steps.get(step, {})) for step in STEPS)} |" for name, steps in found.items()
    ]
    return "\n".join([f"| checkpoint | {' | '.join(STEPS)} |", "| --- " * (1 + len(STEPS)) + "|", *rows])


def seen(outcomes: dict[str, str]) -> str:
    """One cell: a step without methods is there or not; of the others, the kinds that are not served are named."""
    killed = ", also killed" if outcomes.get("killed") == "passed" else ""
    kinds = {kind: outcome for kind, outcome in outcomes.items() if kind not in ("any", "killed")}
    broken = [kind for kind, outcome in outcomes.items() if outcome not in ("passed", "refused")]
    if broken or not outcomes:
        return f"**no: {', '.join(broken) or 'not tested'}**"
    refused = [kind for kind, outcome in kinds.items() if outcome == "refused"]
    return "yes" if not kinds else ("all" if not refused else f"all but {', '.join(refused)}") + killed


def report(folder: str) -> str:
    """What report.py prints of the records in docs/results/`folder`."""
    records = sorted(map(str, (ROOT / "docs" / "results" / folder).glob("*.json")))
    command = [sys.executable, "-m", "pipelines.report", *records, "--markdown"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return f'<div class="report" markdown>\n\n{printed}\n</div>'


def method_page(kind: type[MethodConfig]) -> str:
    """A method's summary, how it is run, its card and its options."""
    method = type(kind.tiny().build(seed=0))
    title = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    source = Path(inspect.getfile(kind)).resolve().relative_to(ROOT)
    return "\n".join(
        [
            f"# {kind.name}",
            "",
            f"{escaped(kind.summary())}.",
            "",
            f"Run it with `littoral coast --method {kind.name.replace('_', '-')}`; its source is `{source}`.",
            f"{exports(kind.tiny())}",
            "",
            "## Card",
            "",
            escaped(title),
            *(line for name, text in method.card().items() for line in section(name, text)),
            "",
            "## Options",
            "",
            *(options(kind, "method.") or ["It has none."]),
        ]
    )


def exports(config: MethodConfig) -> str:
    """What `littoral export` can write of a method, with its default options."""
    formats = ", ".join(f"`{name}`" for name in config.export_formats)
    return f"It [exports](../guides/export.md) to {formats}." if formats else "It learns nothing to export."


def section(name: str, text: str) -> list[str]:
    """A section of a card: its lists stay lists, and what is indented becomes code where it is a formula."""
    lines = ["", f"**{name}:**"]
    for deep, group in itertools.groupby(text.split("\n"), key=lambda line: line.startswith("    ")):
        block = list(group)
        if deep and FORMULA.search("".join(block)):
            lines += ["", "```text", *textwrap.dedent("\n".join(block)).split("\n"), "```", ""]
            continue
        for line in block:
            item = line.startswith("- ")
            if item and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            lines.append(("- " if item else "  " * line.startswith("  ")) + escaped(line[2 * item :].strip()))
    return lines


def options_page() -> str:
    """All options of a run, section by section."""
    lines = [
        "# Options of a run",
        "",
        "`littoral coast` and `littoral sweep` take every option below, after a preset or alone:",
        "`--training.epochs 2`. `--no-` in front of a switch's last word turns it off:",
        "`--evaluation.no-zero-shot`. The options of a method are on [its page](methods/index.md).",
        "`littoral coast --print-config` prints the values that a command would run with, and",
        "`littoral X --help-all` lists the options of any command X.",
    ]
    hints: dict[str, type[Any]] = get_type_hints(RunConfig)
    parts = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind) and name != "method"}
    lines += ["", "## The run itself", "", *options(RunConfig, "")]
    for name, kind in parts.items():
        lines += ["", f"## {name.title()}", "", escaped(inspect.getdoc(kind) or ""), "", *options(kind, f"{name}.")]
    return "\n".join(lines)


def options(kind: type[Any], prefix: str) -> list[str]:
    """A table of a dataclass's fields, and of the dataclasses inside it; [] where it has none."""
    hints, texts = get_type_hints(kind, include_extras=True), sentences(kind)
    lines: list[str] = []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            if prefix:  # a run's own parts have sections of their own
                lines += options(hint, f"{prefix}{item.name}.")[2:]  # type: ignore[arg-type]
            continue
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
        option = f"--{prefix}{item.name}".replace("_", "-")
        cells = [f"`{option}`", escaped(texts.get(item.name, "")), allowed(hint), f"`{_shown(default)}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return ["| option | meaning | allowed | default |", "| --- | --- | --- | --- |", *lines] if lines else []


def sentences(kind: type[Any]) -> dict[str, str]:
    """The docstring below each field, of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(parent):
            continue
        body = ast.parse(inspect.getsource(parent)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def allowed(hint: Any) -> str:
    """What an option takes, in a few words."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        limits = [limit for note in notes for limit in getattr(note, "metadata", ())]
        bounds = [f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in BOUNDS if hasattr(limit, name)]
        return " ".join([allowed(kind), " and ".join(bounds)]).strip()
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"any number of {allowed(get_args(hint)[0])}"
    if type(None) in get_args(hint):
        rest = [allowed(kind) for kind in get_args(hint) if kind is not type(None)]
        return f"{' or '.join(rest)}, or nothing"
    if get_origin(hint) is Union or len(get_args(hint)) > 1:
        return " or ".join(map(allowed, get_args(hint)))
    words = {"int": "integer", "float": "number", "str": "text", "bool": "switch", "Path": "path"}
    return words[hint.__name__]


def escaped(text: str) -> str:
    """Plain text whose signs mean nothing to Markdown; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]|])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
