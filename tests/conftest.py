"""Before any test imports a library: no hub access, one thread (the models are tiny), and as a run itself sets it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from components.core.machine import usable_cpus
from components.core.runtime import fast_imports, quiet_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["tests.families.recording"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything a test loads is built in code or installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other took half of the suite's time
quiet_environment()
settings.register_profile("any_machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any_machine")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
    os.environ.pop(variable, None)  # of whoever runs the tests

# Files that take long, begun before all others: whoever began one of them last would keep the other processes waiting.
LONG = (
    *("test_stream.py", "test_deaths.py", "test_serve.py", "test_interrupt.py", "test_zero_stages.py"),
    *("test_runs_in_a_store.py", "test_local_worker.py", "test_engine.py"),  # integration, and now those without Ray
    *("test_methods.py", "test_reuse.py", "test_two_workers.py", "test_methods_learn.py", "test_needs.py"),
    *("test_families.py", "test_export.py", "test_command_line.py", "test_damage.py", "test_report_browser.py"),
    *("test_exported_families.py", "test_command.py", "test_third_party.py", "test_unlearning.py", "test_outbox.py"),
    *("test_validation.py", "test_refilled_answers.py", "test_places.py", "test_continual_llava.py"),
    *("test_captions.py", "test_tracking.py", "test_task_free.py", "test_prepared_in_stores.py", "test_tree.py"),
    *("test_tensor_store.py", "test_shared_wording.py", "test_released_scorers.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Without paths and marks, what is `long` is left out; a path or `-m long` brings it."""
    if not config.option.markexpr and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.option.markexpr = "not long"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Most of it is importing. What is imported lives as long as the process, so the tests' garbage is looked for
    elsewhere."""
    with fast_imports():
        found = yield
    gc.freeze()
    return found


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: one more than the processors, since many tests wait for a process; at most 4, since each
    imports all anew."""
    return min(4, usable_cpus() + 1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What a test runs in this process may set the number of threads; two such processes would wait for each other."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; its tests are skipped where it or playwright is not installed."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
