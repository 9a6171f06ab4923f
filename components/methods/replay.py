"""Experience replay: some stored rows of every past task are mixed into the new one."""

from __future__ import annotations

from components.methods.options.replay import ReplayConfig
from components.methods.sequential_lora import SequentialLora


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
