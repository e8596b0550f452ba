"""The index's thread: searches that come within a few milliseconds are one call of it."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from stages.effects import Effect
from stages.tools import Tools, cut_batches

WINDOW = 0.002  # seconds from a search to the call that it is in, at the most


class _Asked(NamedTuple):
    effect: Effect
    tools: Tools
    future: Future[Any]


class Searcher:
    """Runs effects that need no generator, many at once, in a thread of its own."""

    def __init__(self, count: Callable[[int], None] = lambda size: None) -> None:
        self._count = count  # told the size of every batch
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="searcher", daemon=True)
        self._thread.start()

    def submit(self, effect: Effect, tools: Tools) -> Future[Any]:
        """The effect's result; effects with the same retriever go into one call."""
        future: Future[Any] = Future()
        self._queue.put(_Asked(effect, tools, future))
        return future

    def close(self) -> None:
        """Finish what was asked, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            batch = [self._queue.get()]
            deadline = time.monotonic() + WINDOW
            while batch[-1] is not None and (left := deadline - time.monotonic()) > 0:
                try:
                    batch.append(self._queue.get(timeout=left))
                except queue.Empty:
                    break
            more = batch[-1] is not None
            asked = [a for a in batch if a and a.future.set_running_or_notify_cancel()]
            groups: dict[int, list[_Asked]] = {}
            for one in asked:  # an index that was reopened is another retriever
                groups.setdefault(id(one.tools.retriever), []).append(one)
            for group in groups.values():
                for keys in cut_batches({str(i): a.effect for i, a in enumerate(group)}, None):
                    self._perform([group[int(key)] for key in keys])

    def _perform(self, batch: list[_Asked]) -> None:
        """One call for all; if it fails, each alone, so that one bad search harms no other."""
        self._count(len(batch))
        try:
            values = dict(batch[0].tools.run([a.effect for a in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for one in batch:
                    self._perform([one])
            return
        for i, one in enumerate(batch):
            one.future.set_result(values[i])
