"""The errors a user can act on. Each message says what was given, what is allowed and what to do."""

from __future__ import annotations

from components.core.secrets import without_secrets
from components.core.visible import visible

MAX_CHARS = 2000  # of a message, which may quote names and lists from a damaged file


class LittoralError(Exception):
    """Base of every error a user can act on; pipelines print it as one sentence and exit with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        return _readable(super().__str__())


class ConfigError(LittoralError):
    """An option, preset, method or stream that cannot be run as given."""


class DataError(LittoralError):
    """A file, row, image or shard that is missing, broken or not what its manifest says."""


class CheckpointError(LittoralError):
    """A checkpoint that does not belong to this backbone, method or stream, or cannot be read."""


class TrainingError(LittoralError):
    """Training that cannot go on or did nothing: a diverged loss, an update without a step, adapters without effect."""


class ExportError(LittoralError):
    """An export that does not compute what the run's own method does."""


class StreamStopped(LittoralError):
    """A run that was asked to end early; the same command continues it."""


class LostError(LittoralError):
    """Processes, nodes or Ray's servers were lost, not by a fault of ours; the same command goes on."""


class BudgetExceeded(StreamStopped):
    """A task that cost the earlier ones more points than evaluation.max-forgetting allows."""

    exit_code = 3


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Kubernetes and `docker stop` send it: a command ends as after Ctrl-C, with exit code 143."""


class TrackingError(LittoralError):
    """MLflow cannot be reached or refuses to record."""


class StorageError(LittoralError, OSError):
    """A storage that is full, read-only or gone. Also an `OSError`, with its `errno` and `strerror`."""

    def __str__(self) -> str:  # an OSError with a number would show that and what the system says of it
        return _readable(str(self.args[0]))


def _readable(message: str) -> str:
    """Nothing in it steers a terminal; of one that is too long, the middle is left out: both ends say what to do.

    Secrets are replaced before anything is cut: half of one would not be known as such any more.
    """
    text, half = visible(without_secrets(message)), MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} [...] {text[-half:]}"
