"""Any method with its state as one folder that Littoral opens again, to answer questions by the method's own forward.

A bundle is a checkpoint (core/checkpoint.py: safetensors and JSON, never pickle) whose configuration names no place,
with the code's version beside it. The backbone's weights are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import CheckpointError, ConfigError, DataError
from components.core.fingerprint import code_fingerprint
from components.core.naming import git_commit
from components.core.reading import understood
from components.data.formats.pictures import open_image
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.evaluation.generation import Answer, answer
from components.methods.base import Method, MethodState
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig

if TYPE_CHECKING:
    from components.exporting.learned import LearnedRun
    from components.models.backbone import Backbone
    from components.models.encoding import Encoder

FORMAT = "littoral-bundle/1"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A method after some task, on its backbone, ready to answer."""

    model: Backbone
    method: Method
    encoder: Encoder
    config: RunConfig
    stream: str
    tasks: list[str]  # of the stream, in order; `method.tasks` are those learned
    made_with: Mapping[str, Any]  # code that wrote the bundle: version, commit, fingerprint

    def answer(
        self, question: str, picture: Path | bytes | None = None, *, max_new_tokens: int = 64, task: str | None = None
    ) -> Answer:
        """The greedy reply to one question, with a picture (a file or its bytes) or without.

        `task` is for methods that must be told which learned task a question is of; the others find out by themselves.
        Raises `ConfigError` for a task that is needed, unknown or not asked for, `DataError` for a broken picture.
        """
        self._check_task(task)
        example = self.encoder.prompt_example(_row(question, picture))
        with self.method.test_file([example.instruction]):
            (reply,) = answer(
                self.model,
                self.method,
                self.encoder,
                [example],
                batch_size=1,
                max_new_tokens=max_new_tokens,
                device=self.model.device,
                known_task=task,
            )
        return reply

    def _check_task(self, task: str | None) -> None:
        learned = ", ".join(self.method.tasks)
        if self.method.config.needs_task_id and task not in self.method.tasks:
            raise ConfigError(f"{self.method.config.name} must be told the task of a question; give one of {learned}.")
        if task is not None and not self.method.config.needs_task_id:
            raise ConfigError(f"{self.method.config.name} finds the task by itself; leave `task` out.")


def write_bundle(folder: Path, learned: LearnedRun) -> None:
    """Write the bundle of a run after one of its tasks into the empty `folder`."""
    config = learned.run.config
    moved = replace(
        config, storage=Path("runs"), tracking=TrackingConfig(), cluster=replace(config.cluster, address=None)
    )
    state = {
        **learned.checkpoint.state,
        "config": moved.to_json(),
        "bundle": FORMAT,
        "code": {"fingerprint": code_fingerprint(), "commit": git_commit()},
    }
    write_checkpoint(folder, state, {"method": learned.checkpoint.tensors["method"]})


def load_bundle(folder: str | Path, *, backbone: str | None = None, device: str = "cpu") -> Bundle:
    """Open a bundle. `backbone` says where the base weights are now (a directory or hub id), if not where they were.

    Raises `CheckpointError` for a folder that is no bundle or is damaged and for other base weights, `ConfigError` for
    a backbone or method that is not there.
    """
    from components.models.backbone import load_backbone  # transformers, which nobody waits for before this
    from components.models.encoding import build_encoder

    folder = Path(folder).expanduser()
    stored = read_checkpoint(folder)
    if stored.state.get("bundle") != FORMAT:
        raise CheckpointError(f"{folder} is not a bundle ({FORMAT}); write one with `littoral export --to bundle`.")
    state = cast("dict[str, Any]", stored.state)
    with understood(folder, CheckpointError, "write the bundle again"):
        config = RunConfig.from_json(state["config"])
        structure, tensors = dict(state["method_structure"]), stored.tensors["method"]
        stream, made_with = str(state["stream_name"]), state["code"]
        tasks, fingerprint = [str(task) for task in state["tasks"]], str(state["backbone"])
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
    model = load_backbone(config.backbone)
    if model.fingerprint != fingerprint:
        raise CheckpointError(
            f"the bundle {folder} belongs to other weights than those of backbone {config.backbone.name!r}; say with "
            "`backbone` where those are."
        )
    method = attached(config, model, MethodState(tensors=tensors, structure=structure))
    return Bundle(
        model=model.to(torch.device(device)),
        method=method,
        encoder=build_encoder(config.backbone),
        config=config,
        stream=stream,
        tasks=tasks,
        made_with=made_with,
    )


def attached(config: RunConfig, model: Backbone, state: MethodState) -> Method:
    """The method of `config` on a fresh backbone, as `state` has it and as it answers."""
    torch.manual_seed(config.seed)  # as in training: a method may draw while it attaches
    method = config.method.build(seed=config.seed)
    method.attach(model, state)
    model.eval()
    return method


def _row(question: str, picture: Path | bytes | None) -> Row:
    try:
        image = picture.read_bytes() if isinstance(picture, Path) else picture
    except OSError as error:
        raise DataError(f"the picture {picture} cannot be read ({error.strerror}); give a picture file.") from error
    size = (None, None) if image is None else open_image(image, sample_id="question").size
    return Row(
        sample_id="question",
        task="question",
        split="test",
        turns=(
            Turn(speaker="human", text=question if image is None else f"{IMAGE_TOKEN}\n{question}"),
            Turn(speaker="gpt", text=""),
        ),
        answers=(),
        metric="exact",
        source="asked",
        image=image,
        width=size[0],
        height=size[1],
    )
