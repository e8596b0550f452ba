"""The index's threads: searches that wait while they are busy are the next call, or the next few.

A search that finds the index idle begins at once. What comes while others run goes together after
them, with as many as were answered just now, which are waited for a tenth of the time that those
took at the most: clients that were answered together ask again together, and a dense index
encodes them together in less time than one by one.

To wake a thread and to be woken by it takes as long as a search of a small index in memory: where
all that waits takes less than ``BRIEF``, by what searches of this index have taken so far, it is
made where it was asked for, in the event loop.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from stages.effects import Effect
from stages.tools import Tools, cut_batches

MOST = 64  # searches of one call
BRIEF = 0.001  # seconds that the event loop may be kept
TURNS = 3  # of the event loop that bring no other search, before those there are made in it
PATIENCE = 0.1  # of what the last calls took, for others to come
LATELY = 0.2  # weight of the last call in what a search takes


class Asked(NamedTuple):
    """A search on its way."""

    effect: Effect
    tools: Tools
    future: Future[Any] | asyncio.Future[Any]


class Sharing(Protocol):
    """How searches of an index go together."""

    in_memory: bool  # a search waits neither for a disk nor for the threads of a model

    def cut(self, waiting: Sequence[Asked]) -> Sequence[Sequence[Asked]]:
        """Those that are one call, in the order of the calls; each in one of them."""
        ...

    def tools(self, batch: Sequence[Asked]) -> Tools:
        """What the call of such a batch runs on."""
        ...


class Alike:
    """All searches of one form are one call."""

    def __init__(self, *, in_memory: bool = True) -> None:
        self.in_memory = in_memory

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
    """Runs effects that need no generator, many at once, in threads of its own: as many as the
    index may be searched by at a time."""

    def __init__(
        self, count: Callable[[int], None] = lambda size: None, sharing: Sharing = ALIKE,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self._count, self._sharing = count, sharing  # count is told the size of every batch
        self._each = BRIEF  # seconds of processor time that a search takes, lately
        self._near: list[Asked] = []  # to be made in the event loop
        self._away = 0  # given to the thread, and not back
        self._queue: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"searcher-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def ask(self, effect: Effect, tools: Tools, seconds: float | None = None) -> Any:
        """The effect's result; effects with the same retriever go into one call.

        For tasks of one event loop.

        Raises:
            TimeoutError: it took longer than this.
        """
        quick = (len(self._near) + 1) * self._each < BRIEF
        if not (self._sharing.in_memory and quick and not self._away):
            self._away += 1
            try:
                async with asyncio.timeout(seconds):
                    return await asyncio.wrap_future(self.submit(effect, tools))
            finally:
                self._away -= 1
        loop = asyncio.get_running_loop()
        if not self._near:
            loop.call_soon(self._run_near, loop, 0, TURNS)
        self._near.append(Asked(effect, tools, future := loop.create_future()))
        return await future

    def submit(self, effect: Effect, tools: Tools) -> Future[Any]:
        """``ask`` from any thread; always in a thread of the index."""
        future: Future[Any] = Future()
        self._queue.put(Asked(effect, tools, future))
        return future

    def close(self) -> None:
        """Finish what was asked, then end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        more, wanted, took = True, 1, 0.0  # how many may come this time; seconds of the last one
        while more:
            waiting = self._collect(wanted, PATIENCE * took)
            more = waiting[-1] is not None
            asked = [a for a in waiting if a and a.future.set_running_or_notify_cancel()]
            start, left = time.perf_counter(), 0
            for batch in self._sharing.cut(asked):
                left = self._perform(batch)
            wanted, took = len(asked) + left, time.perf_counter() - start

    def _collect(self, wanted: int, seconds: float) -> list[Asked | None]:
        """All that waits, at least one; so many if they come in this time. None is the end."""
        waiting = [self._queue.get()]
        deadline = time.perf_counter() + seconds
        while waiting[-1] is not None:
            left = deadline - time.perf_counter() if len(waiting) < wanted else 0.0
            try:
                waiting.append(self._queue.get(timeout=max(0.0, left)))
            except queue.Empty:
                break
        return waiting

    def _run_near(self, loop: asyncio.AbstractEventLoop, seen: int, turns: int) -> None:
        """What was asked in the loop, once some turns of it have brought nothing more."""
        if turns and len(self._near) * self._each < BRIEF:
            turns = TURNS if len(self._near) > seen else turns - 1
            loop.call_soon(self._run_near, loop, len(self._near), turns)
            return
        asked, self._near = [a for a in self._near if not a.future.cancelled()], []
        for batch in self._sharing.cut(asked):
            self._perform(batch)

    def _perform(self, batch: Sequence[Asked]) -> int:
        """One call for all; if it fails, each alone, so that one bad search harms no other.

        How many waited for the thread when the answers were given: with those who were answered
        they are the next call.
        """
        self._count(len(batch))
        start = time.thread_time()
        try:
            values = dict(self._sharing.tools(batch).run([a.effect for a in batch]))
        except Exception as error:
            if len(batch) > 1:
                return [self._perform([one]) for one in batch][-1]
            left = self._queue.qsize()
            batch[0].future.set_exception(error)
            return left
        each = (time.thread_time() - start) / len(batch)
        self._each += LATELY * (each - self._each)
        left = self._queue.qsize()
        for i, one in enumerate(batch):
            one.future.set_result(values[i])
        return left
