"""The README of an export: a model card with Hugging Face's metadata, made from the run's record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.console.tables import markdown
from components.core.errors import ConfigError, LittoralError
from components.core.location import place
from components.core.visible import visible
from components.evaluation.figure_names import LABELS, NO_BOUNDARIES
from components.evaluation.replies import WORDS
from components.exporting.learned import LearnedRun
from components.exporting.probe import Agreement
from components.methods.options.base import ExportFormat
from components.models.encoding import build_encoder
from components.models.registry import EMBEDDED
from components.models.source import model_source

LIBRARIES: dict[ExportFormat, str] = {"peft": "peft", "merged": "transformers", "bundle": "littoral"}
UNKNOWN = "not stated; ask its authors"
FIGURES = ("final_average", "immediate_average", "forgetting")
FOLDER = Path("FOLDER")  # in commands: wherever the export is


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and what was seen of it."""

    to: ExportFormat
    groups: dict[
        str, list[str]
    ]  # folders in it (or the group that was merged), with their tasks; {}: one set of weights
    rank: int | None  # of a LoRA
    serving: list[str]  # commands and sentences of `serving_notes`, for `FOLDER`
    agreement: Agreement


def model_card(learned: LearnedRun, written: Written) -> str:
    """The whole README.md."""
    config = learned.config
    name = f"{learned.run.config.run_id}, after {learned.task}"
    parts = [
        _metadata(learned, written),
        f"# {name}",
        f"What Littoral learned on the stream `{learned.run.stream_name}` with the method `{config.method.name}`, "
        f"after task {learned.number}, `{learned.task}`.",
        "## What it learned",
        _learned_from(learned),
        _matrix(learned),
        "## How",
        _facts(learned, written),
        "## Load",
        _loading(learned, written),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(learned, written)),
    ]
    return visible("\n\n".join(parts)) + "\n"


def _learned_from(learned: LearnedRun) -> str:
    """The tasks in the order in which they were learned; without boundaries there is no order."""
    matrix = learned.run.matrix
    if matrix.points is None:
        return "\n".join(f"{number}. `{task}`" for number, task in enumerate(learned.tasks, start=1))
    mixed = f"{learned.number} of {len(matrix.points)} segments, in which these tasks are mixed:"
    return "\n".join([mixed, "", *(f"- `{task}`" for task in matrix.tasks)])


def data_licences(learned: LearnedRun) -> list[str]:
    """Licences that the stream's report states, each with its tasks; empty where there is no report."""
    try:
        report = place(learned.run.config.stream.name) / "report.json"
        entries: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8")).get("licences", [])
        return [f"{', '.join(each['tasks'])}: {each['licence']}" for each in entries]
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _metadata(learned: LearnedRun, written: Written) -> str:
    backbone, licence = learned.config.backbone, _base_licence(learned)
    pictures = model_source(backbone).family_class().takes_pictures()
    task = "image-text-to-text" if pictures else "text-generation"
    fields: dict[str, Any] = {"library_name": LIBRARIES[written.to], "pipeline_tag": task}
    if backbone.name not in EMBEDDED and not Path(backbone.name).expanduser().exists():
        fields["base_model"] = backbone.name  # a hub id; the metadata may name nothing else
    if licence is not None:
        fields["license"] = licence
    fields["tags"] = ["littoral", "continual-learning", learned.config.method.name, *(["lora"] if written.rank else [])]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _base_licence(learned: LearnedRun) -> str | None:
    try:
        return model_source(learned.config.backbone).licence()
    except LittoralError:
        return None


def _matrix(learned: LearnedRun) -> str:
    matrix = learned.run.matrix.at(min(learned.number, learned.run.matrix.num_learned))
    lines = [
        [f"`{after}`", *("" if cell is None else f"{cell:.1f}" for cell in row)]
        for after, row in zip(matrix.after, matrix.rows, strict=True)
    ]
    each = "task" if matrix.points is None else "segment"
    said = f"Scores (0 to 100) on each task's {learned.run.config.evaluation.split} rows, after each {each}:"
    table = markdown(["after", *(f"`{task}`" for task in matrix.tasks)], lines)
    figures = [f"- {LABELS[name]}: {value:.1f}" for name, value in matrix.summary().items() if name in FIGURES]
    if matrix.points is not None:
        figures += ["", NO_BOUNDARIES]
    return "\n".join([said, "", *table, "", *figures]).strip()


def _facts(learned: LearnedRun, written: Written) -> str:
    config = learned.config
    options = ", ".join(f"{name} {value}" for name, value in config.method.options().items())
    lines = {
        "method": f"`{config.method.name}`: {config.method.summary()}",
        "options": options,
        "backbone": f"`{config.backbone.name}`, {config.backbone.dtype}, fingerprint "
        f"`{str(learned.checkpoint.state['backbone'])[:16]}`",
        "licence of the backbone": _base_licence(learned) or UNKNOWN,
        "licences of the data": "; ".join(data_licences(learned)) or UNKNOWN,
        "prompt": f"template `{build_encoder(config.backbone).template[0]}`",
        "seed": str(config.seed),
        "checked": f"on built-in rows the logits differ from the run's own by at most {written.agreement.error:.2g}, "
        f"where the method changes the backbone's by up to {written.agreement.effect:.2g}",
    }
    if written.rank is not None:
        lines["rank"] = str(written.rank)
    return "\n".join(markdown(["", ""], [[name, text] for name, text in lines.items()]))


def _loading(learned: LearnedRun, written: Written) -> str:
    source = model_source(learned.config.backbone)
    base, kind, embedded = source.config.name, source.family_class().auto_class, source.config.name in EMBEDDED
    if written.to == "bundle":
        asked = 'bundle.answer("What does it show?", Path("picture.png"))'
        if not source.family_class().takes_pictures():
            asked = 'bundle.answer("What is it?")'
        code = ["from pathlib import Path", "from components.exporting import load_bundle", ""]
        code += ["bundle = load_bundle(FOLDER)", f"print({asked}.text)"]
    elif written.to == "merged":
        code = ["import components.models.embedded.efficientnet  # smol's tower"] if embedded else []
        code += [f"from transformers import {kind}", "", f"model = {kind}.from_pretrained(FOLDER)"]
    else:
        load, code = f'{kind}.from_pretrained("{base}")', [f"from transformers import {kind}"]
        if embedded:
            load = f'model_source(BackboneConfig(name="{base}")).model()'
            code = ["from components.models.config import BackboneConfig"]
            code.append("from components.models.source import model_source")
        folder = f'FOLDER + "/{next(iter(written.groups))}"' if written.groups else "FOLDER"
        code += ["from peft import PeftModel", "", f"model = PeftModel.from_pretrained({load}, {folder})"]
    parts = ["\n".join(["```python", *code, "```"])]
    if written.to == "peft" and written.groups:
        parts.append("One adapter serves a request; `routing.json` says which, and how it is chosen.")
    return "\n\n".join([*parts, *map(_command_or_sentence, written.serving)])


def _command_or_sentence(note: str) -> str:
    return note if note.endswith(".") else f"```bash\n{note}\n```"


def _limits(learned: LearnedRun, written: Written) -> Sequence[str]:
    run = learned.run
    limits = ["Scored on the tasks above only; any other use was not tested, nor were safety, bias and languages."]
    unscored = [task for task in run.matrix.tasks if task not in learned.tasks]
    if unscored and run.matrix.points is None:
        limits.append(f"Not learned here, though the stream has them: {', '.join(unscored)}.")
    if learned.number > run.matrix.num_learned:
        limits.append(f"The row of scores after {learned.task} is missing: the run was not scored that far.")
    if not run.general.figures:
        limits.append("No general suite was scored, so it is not known what the backbone has forgotten.")
    if run.config.evaluation.limit is not None:
        limits.append(f"Scores are on the first {run.config.evaluation.limit} rows of each task.")
    if run.config.evaluation.replies != "generated":
        limits.append(f"Scored replies are {WORDS[run.config.evaluation.replies]}; generated ones may score otherwise.")
    if written.to != "bundle":
        limits.append("vLLM and SGLang were not run with it; compare a few of its replies with the run's first.")
    if written.to == "merged" and written.groups:
        (group,) = written.groups
        limits.append(f"Only the weights of {group} are in it, which serve {', '.join(written.groups[group])}.")
    if written.to == "bundle":
        limits.append(
            "The backbone's weights are not in it; another version of Littoral may refuse it or answer otherwise."
        )
    return limits
