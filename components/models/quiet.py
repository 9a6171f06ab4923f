"""What Hugging Face prints, switched off for a while: many workers load at once and share one terminal.

Stays apart: it imports transformers, which the modules that a command's help imports must not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """A scope in which loading and converting print no bars; what was set before returns on exit."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def without_reports() -> Iterator[None]:
    """A scope in which nothing is said of weights that a model does not read; what was set returns on exit."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
