"""Experience replay: some stored rows of every past task are mixed into the new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from components.core.options import Count
from components.methods.sequential_lora import SequentialLora, SequentialLoraConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(SequentialLoraConfig):
    """Sequential LoRA over the task's rows and a few stored rows of every earlier task."""

    name: ClassVar[str] = "replay"
    offers_projector: ClassVar[bool] = True
    samples_per_task: Count = 100
    """Rows kept of every past task; CoIN's ablation stores 100, 500 or 1000."""

    @classmethod
    def tiny(cls) -> Self:
        return cls(samples_per_task=8)

    @property
    def stored_samples(self) -> int:
        return self.samples_per_task

    def build(self, *, seed: int) -> Replay:
        return Replay(self, seed=seed)


class Replay(SequentialLora[ReplayConfig]):
    """Experience replay.

    Paper: an old idea (Robins 1995; Chaudhry et al. 2019, "On Tiny Episodic Memories"); CoIN reports it as an ablation.
    Idea: keep `samples_per_task` random rows of each learned task and train on them together with the new task's rows.
    Objective: the language-model loss over task t's rows and the stored ones, shuffled together; every row counts once
        per pass, so the share of stored rows is their share of the set.
    Overrides: nothing; only the training rows differ. Not rehearsal-free: it keeps data, and needs the right to.
    Carried between tasks: the adapter, and the stored rows as Parquet in the data folder.
    Differs: with a fixed number of updates per task the budget stays that of the other methods; with epochs a task
        takes longer by its stored rows.
    """
