"""From the workers' queue to the driver's handler of events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from components.core.errors import StorageError
from components.core.events import Event, EventHandler
from components.core.ray_watch import left_ray

DELIVERY_S = 60  # how long the workers' queue may take for one event at the end
LEFT_S = 1  # the same when Ray is lost and no other event can come
logger = logging.getLogger(__name__)


@contextmanager
def delivered(event_queue: Queue, handle: EventHandler) -> Iterator[None]:
    """While open, a thread passes events from the workers' queue to `handle`; on exit the rest is delivered.

    Not after `KeyboardInterrupt`, or `StorageError` where the run is another process's by now: then the workers are
    still at work, and their events would not end. What `handle` raises for one event is logged as a warning and costs
    no other event. When the queue is lost with its cluster, delivery ends: no more can come.
    """
    stop, at_once, delivered_until = threading.Event(), threading.Event(), 0

    def pump() -> None:
        nonlocal delivered_until
        while not at_once.is_set():
            try:
                event = event_queue.get(timeout=0.5)
            except Empty:
                if stop.is_set():
                    return
            except RayError:
                return
            else:
                _handled(event, handle)
                delivered_until += 1

    thread = threading.Thread(target=pump, name="events", daemon=True)
    thread.start()
    try:
        yield
    except (KeyboardInterrupt, StorageError):
        at_once.set()
        raise
    finally:
        stop.set()
        # As long as events still come: only a cluster that does not answer may keep this thread longer.
        before = -1
        while thread.is_alive() and delivered_until != before:
            before = delivered_until
            thread.join(timeout=LEFT_S if left_ray() else DELIVERY_S)
        if not left_ray():
            with suppress(RayError):
                event_queue.shutdown(force=True)  # every event has been delivered


def _handled(event: Event, handle: EventHandler) -> None:
    try:
        handle(event)
    except Exception as error:  # told; the events after it still have to be handled
        logger.warning("An event could not be handled (%s: %s).", type(error).__name__, error, exc_info=True)
