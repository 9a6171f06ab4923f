"""What a scoring process does with a row: the method as it was after so many tasks, its rows and its suites."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping

import ray
import torch

from components.core.checkpoint import read_checkpoint
from components.core.events import Event
from components.core.run_files import KEPT_CHECKPOINTS
from components.evaluation.matrix_rows import MatrixRow
from components.methods.base import MethodState
from components.models.backbone import load_backbone
from components.training.attached import attached
from components.training.checkpointing import StreamCheckpointer, method_state
from components.training.evaluate import RowScorer
from components.training.kept_replies import KeptReplies, Tally
from components.training.plan import WorkerPlan
from components.training.precision import set_float32_products
from components.training.ranks import Shares
from components.training.stopping import StopWatch
from components.training.streaming import encoder_for
from components.training.suites import SuiteScorer


class Answering:
    """A model that answers as the workers do after so many tasks; call `begin` before each row."""

    def __init__(self, plan: WorkerPlan, send: Callable[[Event], None]) -> None:
        config = plan.config
        self.plan, self.send = plan, send
        # As in a worker: a product that is cut among other threads is rounded otherwise.
        torch.set_num_threads(config.cluster.threads())
        self.device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        set_float32_products(config.backbone, self.device)
        self.stop = StopWatch(plan.run_dir)
        self.replies = KeptReplies(plan.run_dir, plan.shared, config.evaluation)
        self.encoder = encoder_for(config.backbone)
        self.learned = 0
        self._rows: RowScorer | None = None

    def begin(self, learned: int) -> None:
        """Take the method as it was after `learned` tasks, on a fresh backbone: it cannot be taken off again."""
        self.learned, self._rows = learned, None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        model = load_backbone(self.plan.config.backbone, self.device)
        model, method = attached(self.plan, model, self._state(model.fingerprint), self.device)
        self.replies.read_again()  # of earlier rows, which other processes have answered parts of
        self._rows = RowScorer(
            plan=self.plan,
            model=model,
            method=method,
            encoder=self.encoder,
            device=self.device,
            send=self.send,
            stop=self.stop,
            replies=self.replies,
            shares=Shares.all_of(self.plan.config.cluster.num_workers),
        )

    def answer(self, tasks: Collection[str]) -> dict[str, int]:
        """Answer these tasks' cells of the row and keep them for who scores it; by task, how many replies were kept."""
        rows, kept = self._scorer, dict[str, int]()
        rows.model.eval()
        cells = rows.kept_cells(self.learned, self.plan.after(self.learned))
        for task in self.plan.due(self.learned):
            if task.name in tasks:
                rows.tally = Tally()
                rows.cells(cells, [task], self.learned)
                rows.tally.tell(self.send, self.plan.after(self.learned))
                kept[task.name] = rows.tally.kept
        return kept

    def score(self, rows: list[MatrixRow], *, train_s: float, answered: Mapping[str, int]) -> list[MatrixRow]:
        """`rows` and the one that is due now; then the suites. `answered`: see `answer`, of all processes."""
        scorer, scored = self._scorer, rows
        if self.learned or self.plan.config.evaluation.zero_shot:
            scorer.helped = answered
            scored = [*rows, scorer.score(rows, learned=self.learned, train_s=train_s)]
        SuiteScorer(self.plan, scorer).score(scored, learned=self.learned)
        return scored

    def require_going_on(self) -> None:
        """Raise `StopRequested` if the run was asked to stop."""
        self._scorer.require_going_on()

    def _state(self, backbone: str) -> MethodState | None:
        """What the task left that was learned last; None before the first one."""
        if not self.learned:
            return None
        plan, name = self.plan, f"{self.learned:02d}-{self.plan.after(self.learned)}"
        # Not as rank 0: only the training worker of that rank writes checkpoints.
        checkpoints = StreamCheckpointer(plan, rank=1, backbone=backbone)
        return method_state(checkpoints.of_this_run(read_checkpoint(plan.run_dir / KEPT_CHECKPOINTS / name)))

    @property
    def _scorer(self) -> RowScorer:
        assert self._rows is not None, "begin comes first"
        return self._rows
