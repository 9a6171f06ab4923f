"""Write an export and prove it, or leave nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from components.core.errors import ConfigError
from components.core.files import whole_folder, write_json, write_text
from components.data.batch import Batch
from components.exporting.bundle import attached, load_bundle, write_bundle
from components.exporting.card import FOLDER, Written, model_card
from components.exporting.learned import LearnedRun
from components.exporting.merged import merged_logits, write_merged
from components.exporting.peft_folder import peft_logits, write_peft
from components.exporting.probe import Agreement, agreement, probe_batch
from components.exporting.served import Served, logits_of, served_by
from components.exporting.serving import serving_notes
from components.methods.base import ExportFormat, Method, MethodState
from components.models.backbone import Backbone, load_backbone
from components.models.registry import EMBEDDED

CARD, ROUTING = "README.md", "routing.json"


def write_export(learned: LearnedRun, to: ExportFormat, group: str | None, out: Path) -> Written:
    """Export a run that `check_export` has accepted into the new folder `out`, with a model card.

    The backbone is in memory once at a time. Raises `ExportError`, and leaves nothing, where what was written does not
    compute what the method does.
    """
    batch = probe_batch(learned.config.backbone)
    try:
        with whole_folder(out) as folder:
            written = _bundle(learned, folder, batch) if to == "bundle" else _weights(learned, to, group, folder, batch)
            write_text(folder / CARD, model_card(learned, written))
            _readable_alike(folder)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror or error}); give --out another folder.") from error
    return written


def _readable_alike(folder: Path) -> None:
    """Let whoever may read the card read the weights: safetensors gives them to this user alone."""
    mode = (folder / CARD).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _method(learned: LearnedRun, batch: Batch) -> tuple[Backbone, Method, Tensor]:
    """The method on its backbone, and what the backbone predicts without it."""
    model = load_backbone(learned.config.backbone)
    base = logits_of(model, batch)
    state = MethodState(tensors=learned.checkpoint.tensors["method"], structure={**learned.structure})
    return model, attached(learned.config, model, state), base


def _bundle(learned: LearnedRun, folder: Path, batch: Batch) -> Written:
    model, method, base = _method(learned, batch)
    told = _told(method, batch)
    with method.select(model, told):
        ours = logits_of(model, told)
    del model, method
    write_bundle(folder, learned)
    bundle = load_bundle(folder, backbone=learned.config.backbone.name)
    with bundle.method.select(bundle.model, told):
        found = logits_of(bundle.model, told)
    seen = agreement(found, ours, base, dtype=learned.config.backbone.dtype, what="the bundle")
    return Written(to="bundle", groups=learned.groups, rank=None, serving=[], agreement=seen)


def _told(method: Method, batch: Batch) -> Batch:
    return replace(batch, oracle_task=method.tasks[-1]) if method.config.needs_task_id else batch


def _weights(learned: LearnedRun, to: ExportFormat, group: str | None, folder: Path, batch: Batch) -> Written:
    groups = learned.groups if group is None else {group: learned.groups[group]}
    model, method, base = _method(learned, batch)
    sets = [served_by(method, model, batch, name, tasks) for name, tasks in (groups or {"": []}).items()]
    routing = {**method.routing(), "groups": groups}
    del model, method  # what was read of them stays; the frozen weights go before they are loaded again
    rank, notes = None, list[str]()
    name = learned.config.backbone.name
    if to == "peft":
        rank = max(write_peft(folder / each.name, each, base=name) for each in sets)
        if groups:
            write_json(folder / ROUTING, routing)
        if name not in EMBEDDED:
            adapters = {each.name or str(learned.run.config.run_id): str(FOLDER / each.name) for each in sets}
            notes = serving_notes(name, adapters, rank, projector=any(each.projector for each in sets))
    else:
        (only,) = sets
        write_merged(folder, only, learned.config.backbone)
        if name not in EMBEDDED:
            notes = [f"vllm serve {FOLDER}"]
    seen = _proved(learned, to, folder, batch, sets, base)
    return Written(to=to, groups=groups, rank=rank, serving=notes, agreement=seen)


def _proved(
    learned: LearnedRun, to: ExportFormat, folder: Path, batch: Batch, sets: list[Served], base: Tensor
) -> Agreement:
    """The worst agreement of the sets with what was written of them."""
    model = load_backbone(learned.config.backbone)
    found: list[Agreement] = []
    for each in sets:
        what = f"the {to} export" + (f" of {each.name}" if each.name else "")
        load = peft_logits if to == "peft" else merged_logits
        logits = load(model, folder / each.name if to == "peft" else folder, batch)
        found.append(agreement(logits, each.logits, base, dtype=learned.config.backbone.dtype, what=what))
    return Agreement(error=max(each.error for each in found), effect=min(each.effect for each in found))
