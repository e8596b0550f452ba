"""The index's thread: searches that wait while it is busy are its next call, or its next few.

Nothing waits for company: a search that finds the index idle begins at once, and what comes while
it runs goes together after it. How much waits is how much is batched.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from stages.effects import Effect
from stages.tools import Tools, cut_batches

MOST = 64  # searches of one call


class Asked(NamedTuple):
    """A search on its way."""

    effect: Effect
    tools: Tools
    future: Future[Any]


class Sharing(Protocol):
    """How searches of an index go together."""

    def cut(self, waiting: Sequence[Asked]) -> Sequence[Sequence[Asked]]:
        """Those that are one call, in the order of the calls; each in one of them."""
        ...

    def tools(self, batch: Sequence[Asked]) -> Tools:
        """What the call of such a batch runs on."""
        ...


class Alike:
    """An index in memory: all searches of one form are one call."""

    def cut(self, waiting: Sequence[Asked]) -> list[list[Asked]]:
        """See ``Sharing``."""
        groups: dict[int, list[Asked]] = {}
        for one in waiting:  # an index that was reopened is another retriever
            groups.setdefault(id(one.tools.retriever), []).append(one)
        return [
            [group[int(key)] for key in keys]
            for group in groups.values()
            for keys in cut_batches({str(i): a.effect for i, a in enumerate(group)}, MOST)
        ]

    def tools(self, batch: Sequence[Asked]) -> Tools:
        """See ``Sharing``."""
        return batch[0].tools


ALIKE = Alike()


class Searcher:
    """Runs effects that need no generator, many at once, in a thread of its own."""

    def __init__(
        self, count: Callable[[int], None] = lambda size: None, sharing: Sharing = ALIKE
    ) -> None:
        self._count, self._sharing = count, sharing  # count is told the size of every batch
        self._queue: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="searcher", daemon=True)
        self._thread.start()

    def submit(self, effect: Effect, tools: Tools) -> Future[Any]:
        """The effect's result; effects with the same retriever go into one call."""
        future: Future[Any] = Future()
        self._queue.put(Asked(effect, tools, future))
        return future

    def close(self) -> None:
        """Finish what was asked, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            waiting = [self._queue.get()]
            while waiting[-1] is not None and not self._queue.empty():
                waiting.append(self._queue.get())
            more = waiting[-1] is not None
            asked = [a for a in waiting if a and a.future.set_running_or_notify_cancel()]
            for batch in self._sharing.cut(asked):
                self._perform(batch)

    def _perform(self, batch: Sequence[Asked]) -> None:
        """One call for all; if it fails, each alone, so that one bad search harms no other."""
        self._count(len(batch))
        try:
            values = dict(self._sharing.tools(batch).run([a.effect for a in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for one in batch:
                    self._perform([one])
            return
        for i, one in enumerate(batch):
            one.future.set_result(values[i])
