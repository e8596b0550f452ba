"""The model's thread: one stream that never ends, fed by all requests, between token steps.

``stages.lm`` admits and cancels at token steps; what is asked and what it looks at between two
steps is here. A local model computes in one thread, and all its calls share that thread's
stream. A remote one is a server that batches by itself: there each call has a stream of its own,
so that a connection that breaks ends one text and no other.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from stages.effects import Choice
from stages.endpoint import EndpointGenerator
from stages.errors import QuarryError
from stages.lm import LocalGenerator
from stages.serve.http.upstream import Upstream
from stages.tools import Tools
from stages.types import Generation, Generator, Request, TokenEvent

log = logging.getLogger(__name__)

REMOTE = 16  # streams to a server side by side
CHOICES = 8  # in one look: what they can hold up the running texts by

Said = str | Generation | int | Exception  # new text; then the end: of a text, a choice, badly


class Call:
    """Something asked of the generator; ``hear`` is called in the generator's thread."""

    def __init__(self, name: str, asked: Request | Choice, hear: Callable[[Said], None]) -> None:
        self.name, self.asked, self.hear = name, asked, hear
        self.given_up = False


class Desk:
    """All calls to one generator."""

    def __init__(self, generator: Generator, identity: Any = ()) -> None:
        self.generator = generator
        self.identity = identity  # of the folder that it was opened from
        self.users = 0  # requests that began with it; the catalogue counts them
        self.steps = 0  # looks between token steps, of all lanes
        self.changed = threading.Condition()
        self.waiting: deque[Call] = deque()
        self.choices: deque[Call] = deque()
        self.closing = False
        self.to_forget: list[threading.Event] = []  # each set when it is done
        remote = isinstance(generator, EndpointGenerator)
        self._upstream = Upstream(generator._client) if remote else None
        self._names = itertools.count()
        alone = isinstance(generator, LocalGenerator)
        self.lanes = [_Lane(self, rows=None if alone else 1) for _ in range(1 if alone else REMOTE)]
        for lane in self.lanes:
            lane.thread.start()

    @property
    def running(self) -> int:
        """Calls that hold a row of the generator."""
        return sum(len(lane.running) for lane in self.lanes)

    def submit(self, asked: Request | Choice, hear: Callable[[Said], None]) -> Call:
        """Queue a call.

        Raises:
            QuarryError: it could not be run by any generator, or the desk is closed.
        """
        if isinstance(asked, Request) and not _is_sound(asked):
            raise QuarryError(f"not a request: {asked._replace(prompt='...')}")
        call = Call(str(next(self._names)), asked, hear)
        with self.changed:
            if self.closing:
                raise QuarryError("the service is shutting down.")
            (self.choices if isinstance(asked, Choice) else self.waiting).append(call)
            self.changed.notify_all()
        return call

    def give_up(self, call: Call) -> None:
        """Its row is free after the next look; a call that has ended is left alone."""
        with self.changed:
            call.given_up = True
            self.changed.notify_all()

    def forget(self) -> threading.Event:
        """Prompts that were kept for others to begin like them are dropped; set when they are."""
        done = threading.Event()
        if not isinstance(self.generator, LocalGenerator):
            done.set()  # what a server keeps is its own affair
            return done
        with self.changed:
            self.to_forget.append(done)
            self.changed.notify_all()
        return done

    def close(self) -> None:
        """Finish what was asked, then end the threads.

        A server is not waited for once all that is asked of it was given up.
        """
        with self.changed:
            self.closing = True
            self.changed.notify_all()
            if self._upstream is not None:
                self.changed.wait_for(self._is_given_up)
        if self._upstream is not None:
            self._upstream.cut()
        for lane in self.lanes:
            lane.thread.join()

    def _is_given_up(self) -> bool:
        calls = [*self.waiting, *self.choices]
        for lane in self.lanes:
            calls += [*lane.running.values(), *filter(None, [lane.choosing])]
        return all(call.given_up for call in calls)


class _Lane:
    """A thread with a stream, which is its own ``stages.types.Inbox``."""

    def __init__(self, desk: Desk, rows: int | None) -> None:
        self.desk, self.rows = desk, rows
        self.running: dict[str, Call] = {}
        self.choosing: Call | None = None
        self.thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def _run(self) -> None:
        while not self.closed():
            try:
                for event in self.desk.generator.stream(self):
                    self._tell(event)
            except Exception as error:  # what ran in this stream ends with it; a new one begins
                log.exception("the generator failed with %d texts on their way", len(self.running))
                ended, self.running = self.running, {}
                for call in ended.values():
                    call.hear(error)
                self._told()

    def _tell(self, event: TokenEvent) -> None:
        call = self.running[event.request_id]
        if event.text:
            call.hear(event.text)
        if event.done is not None:
            del self.running[event.request_id]
            call.hear(event.done)
            self._told()

    def _told(self) -> None:
        """Something has ended: who closes the desk may be waiting for it."""
        with self.desk.changed:
            self.desk.changed.notify_all()

    # -- stages.types.Inbox ---------------------------------------------------------------

    def closed(self) -> bool:
        """Whether nothing is waiting and nothing will come."""
        desk = self.desk
        with desk.changed:
            return desk.closing and not desk.waiting and not desk.choices

    def cancelled(self) -> Iterable[str]:
        """Names of given-up calls; choices are made here, between two token steps."""
        self.desk.steps += 1
        self._forget()
        self._choose()
        return [name for name, call in self.running.items() if call.given_up]

    def admit(self, room: int) -> Iterable[tuple[str, Request]]:
        """New calls; with nothing to do at all, sleeps until there is something."""
        desk, new = self.desk, []
        with desk.changed:
            while not (
                self.running or desk.waiting or desk.choices or desk.closing or desk.to_forget
            ):
                desk.changed.wait()
            if self.rows is not None:
                room = min(room, self.rows - len(self.running))
            while desk.waiting and len(new) < room:
                call = desk.waiting.popleft()
                if call.given_up:
                    continue
                self.running[call.name] = call
                new.append((call.name, call.asked))
        return new

    def _choose(self) -> None:
        desk = self.desk
        with desk.changed:
            if self.rows is not None and len(self.running) >= self.rows:
                return
            n = min(len(desk.choices), CHOICES if self.rows is None else 1)
            calls = [desk.choices.popleft() for _ in range(n)]
        for call in [c for c in calls if not c.given_up]:
            self.choosing = call
            try:
                ((_, value),) = Tools(generator=desk.generator).run([call.asked])
                call.hear(value)
            except Exception as error:
                call.hear(error)
            self.choosing = None
            self._told()

    def _forget(self) -> None:
        with self.desk.changed:
            asked, self.desk.to_forget = self.desk.to_forget, []
        if asked:
            self.desk.generator.forget()
        for done in asked:
            done.set()


def _is_sound(r: Request) -> bool:
    return "" not in r.stop and r.temperature >= 0 and 0 < r.top_p <= 1 and r.max_tokens >= 0
