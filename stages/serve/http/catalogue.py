"""What a request can name, and what lies behind the names: opened once, reopened when replaced.

Names are entries of ``serve`` in params.yaml and the indexes that these name. Entries that name
the same corpus, index or model share it. A question keeps what it began with: when an index's
folder is replaced, the new one is opened beside the old one and takes its place in one
assignment; the old one is closed when its last question has ended. So it is with a generator whose
folder is replaced, by a promotion or a training: both are in memory until then.

An index of kind ``clustered`` is fetched ahead, as the entry's ``ahead`` says and the command line;
by the defaults of that block where an entry has none. Entries that say the same share an engine and
its memory, those that differ have their own.

The corpus is read again together with its index and never alone: DVC makes the corpus first, and
passages must be those that the index was built from.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stages import params, shell
from stages.errors import QuarryError
from stages.serve import STRATEGIES
from stages.serve.asked import Ahead, Library, Served
from stages.serve.http.corpus import Corpus
from stages.serve.http.generation import Desk
from stages.serve.http.lookahead import Together, open_ahead, own
from stages.serve.http.searching import Alike, Searcher
from stages.shell import NONE, Task
from stages.types import Retriever

log = logging.getLogger(__name__)

AHEAD = "clustered"  # the kind of index that a PrefetchEngine can serve
AS_ENTRIES_SAY: Mapping[str, Any] = MappingProxyType({})
Identity = tuple[tuple[str, int, int, int], ...]  # of a folder: name, inode, time, size


class Place(NamedTuple):
    """An index with its corpus and its encoder, by name, and how it is fetched ahead.

    The index may be ``none``.
    """

    corpus: str
    index: str
    encoder: str
    ahead: Ahead | None = None


class Entry(NamedTuple):
    """An entry of ``serve`` as params.yaml has it."""

    name: str
    method: Any  # the strategy's module
    values: Served

    @property
    def place(self) -> Place:
        v = self.values
        return Place(v.corpus, v.index, v.encoder, v.ahead)

    @property
    def answers(self) -> bool:
        """Whether it writes text; else it ranks documents."""
        return self.values.model != NONE


def read_entries(names: list[str] | None = None) -> dict[str, Entry]:
    """The entries of ``serve``, all or these, by name.

    Raises:
        QuarryError: one has bad values or is not there.
    """
    found = {}
    for name in names or list(params.entries("serve")):
        module = params.choose("serve", name, "strategy", STRATEGIES)
        method = shell.method("stages.serve", module)
        found[name] = Entry(name, method, params.load(method.Params, "serve", name))
    return found


@dataclass
class Shelf:
    """A corpus and its index, opened. ``users`` are the requests that began with it."""

    place: Place
    identity: Identity
    corpus: Corpus
    retriever: Retriever | None
    ahead: bool  # it can fetch ahead
    users: int = 0
    retired: bool = False
    libraries: dict[str, Library] = field(default_factory=dict)  # by model

    def lent(self) -> contextlib.AbstractContextManager[Retriever | None]:
        """What one request searches with."""
        return own(self.retriever) if self.ahead else contextlib.nullcontext(self.retriever)


class Opened(NamedTuple):
    """What one request works with, from its first step to its last."""

    entry: Entry
    shelf: Shelf
    searcher: Searcher
    desk: Desk | None
    library: Library

    def strategy(self, values: Served) -> Any:
        """The strategy, to be called with a question."""
        return partial(self.entry.method.strategy, params=values, library=self.library)


class Unavailable(QuarryError):
    """It is in the catalogue, and not open (yet); the text says why."""


class Catalogue:
    """The entries, and all that they need.

    ``ahead``: values of the block of that name that hold for every entry, whatever it says.
    """

    def __init__(
        self,
        entries: dict[str, Entry],
        ahead: Mapping[str, Any] = AS_ENTRIES_SAY,
        open_ahead: Callable[[Path, Path | None, Ahead], Any] = open_ahead,
    ) -> None:
        self.entries = entries
        self.why: dict[str, str] = dict.fromkeys(entries, "it is being opened")  # not open
        self.reopened = {"new": 0, "failed": 0}  # indexes
        self.rewritten = {"new": 0, "failed": 0}  # generators
        self.sizes: Any = lambda size: None  # told the size of every search batch
        self._ahead, self._open_ahead = ahead, open_ahead
        self._shelves: dict[Place, Shelf] = {}
        self._searchers: dict[Place, Searcher] = {}
        self._desks: dict[str, Desk] = {}
        self._left: list[Desk] = []  # replaced, and still in use when last looked at
        self._seen: dict[Any, Identity] = {}  # of places and entries, at the last look
        self._failed: dict[Any, Identity] = {}  # what was tried in vain: not tried again
        self.opening = True
        self._closing = False
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by who opens; close waits for it

    @property
    def indexes(self) -> list[str]:
        """Their names, each once, in the order of the entries."""
        named = dict.fromkeys(entry.values.index for entry in self.entries.values())
        return [name for name in named if name != NONE]

    def searching(self, index: str | None) -> Entry | None:
        """The first open entry that searches this index, else the first that does, if any does.

        Of the first index of the catalogue, if none is named: an open one before the others.
        """
        first = None
        for entry in self.entries.values():
            named = entry.values.index
            if named != NONE and index in (named, None):
                if entry.name not in self.why:
                    return entry
                first = first or entry
        return first

    @property
    def desks(self) -> dict[str, Desk]:
        """The opened generators, by name of the model."""
        return dict(self._desks)

    def shelf(self, entry: Entry) -> Shelf | None:
        """What the entry works with now, if it is open."""
        return self._shelves.get(entry.place)

    def ahead(self) -> dict[tuple[str, str], dict[str, float]]:
        """What the indexes that fetch ahead count, by (index, first entry that searches it so)."""
        shelves = [(p, s) for p, s in list(self._shelves.items()) if s.ahead]
        return {(p.index, self._first(p).name): s.retriever.stats() for p, s in shelves}

    def _first(self, place: Place) -> Entry:
        return next(e for e in self.entries.values() if e.place == place)

    def open(self) -> None:
        """Open every entry; what cannot be opened stays in ``why``, whatever the reason."""
        try:
            for entry in self.entries.values():
                with self._turn:
                    if self._closing:
                        return
                    self._try(entry)
        finally:
            self.opening = False
        log.info("%d of %d entries are open", len(self.entries) - len(self.why), len(self.entries))

    def _try(self, entry: Entry) -> None:
        name, now = entry.name, identify(*_needed(entry))
        try:
            self._open(entry)
        except Exception as e:
            self._failed[name] = now
            self.why[name] = _reason(e)
            _warn(e, "serve.%s cannot be served: %s", name, _reason(e))
        else:
            self.why.pop(name, None)

    def _open(self, entry: Entry) -> None:
        place, model = entry.place, entry.values.model
        task = Task("serve", entry.name, False)
        slots = ("triples", "facts", "scorer")
        if needs := [slot for slot in slots if getattr(entry.values, slot) != NONE]:
            raise QuarryError(
                f"it needs {', '.join(needs)}, which the service does not open; "
                f"dvc repro serve@{entry.name} runs it over its questions."
            )
        if place not in self._shelves:
            shelf = self._shelves[place] = self._shelf(task, place)
            at_once = getattr(shelf.retriever, "at_once", None)  # threads: a model reads
            sharing = Together() if shelf.ahead else Alike(in_memory=at_once is None)
            self._searchers[place] = Searcher(lambda size: self.sizes(size), sharing, at_once or 1)
        if model != NONE and model not in self._desks:
            self._desks[model] = self._desk(task, entry)
        shelf = self._shelves[place]
        self._library(shelf, model)

    def _desk(self, task: Task, entry: Entry) -> Desk:
        from stages.lm import open_generator

        identity = identify(_writer(entry.values.model))  # before it is read
        folder = task.slot("finetune", entry.values.model)
        threads = getattr(entry.values, "threads", 1)
        return Desk(open_generator(folder, threads=threads), identity)

    def _library(self, shelf: Shelf, model: str) -> Library:
        if model not in shelf.libraries:
            desk = self._desks.get(model)
            counted = desk.generator.count_tokens if desk else None
            shelf.libraries[model] = shelf.corpus.library(counted)
        return shelf.libraries[model]

    def _shelf(self, task: Task, place: Place) -> Shelf:
        from stages.index import open_index

        watched = _watched(place)
        identity = identify(watched)
        corpus = Corpus(task.slot("ingest", place.corpus))
        index, encoder = task.slot("index", place.index), task.slot("finetune", place.encoder)
        ahead = bool(index) and bool(place.ahead or _kind(place.index) == AHEAD)
        if ahead:
            how = (place.ahead or Ahead()).model_copy(update=self._ahead)
            retriever = self._open_ahead(index, encoder, how)
        else:
            retriever = open_index(index, encoder) if index else None
        shelf = Shelf(place, identity, corpus, retriever, ahead)
        if retriever:  # the first search loads its model: no request's time
            with _closed_on_error(shelf):
                for hits in retriever.search(["warm"], 1):
                    corpus.describe(hits)  # an index over another corpus shows here
        return shelf

    @contextlib.contextmanager
    def borrow(self, entry: Entry) -> Iterator[Opened]:
        """What the entry works with now, valid for as long as the block lasts.

        Raises:
            Unavailable: it is not open.
        """
        with self._lock:
            if entry.name in self.why:
                raise Unavailable(f"entry '{entry.name}' is not open: {self.why[entry.name]}")
            shelf = self._shelves[entry.place]
            model = entry.values.model
            desk, library = self._desks.get(model), self._library(shelf, model)
            shelf.users += 1
            if desk:
                desk.users += 1
        try:
            yield Opened(entry, shelf, self._searchers[entry.place], desk, library)
        finally:
            with self._lock:
                shelf.users -= 1
                if desk:
                    desk.users -= 1
            self._close_if_unused(shelf)

    def look(self) -> None:
        """Open anew what was replaced, and what could not be opened and has changed since.

        A folder that is being filled file by file changes from look to look: it counts once it is
        as it was at the last look. What cannot be opened is not tried again until it changes, and
        the old one goes on serving.
        """
        for place, shelf in list(self._shelves.items()):
            with self._turn:
                if self._closing:
                    return
                now = identify(_watched(place))
                if now and now != shelf.identity and self._is_new(place, _folders(place)):
                    self._replace(place, shelf)
        for model, desk in list(self._desks.items()):
            with self._turn:
                if self._closing:
                    return
                now = identify(_writer(model))
                if now and now != desk.identity and self._is_new(model, [_writer(model)]):
                    self._replace_desk(model, desk)
        self._close_left()
        for name in list(self.why):
            with self._turn:
                if self._closing:
                    return
                if self._is_new(name, _needed(self.entries[name])):
                    self._try(self.entries[name])

    def _is_new(self, what: Any, folders: list[Path]) -> bool:
        """Whether the folders are as at the last look, and not as they were tried in vain."""
        now = identify(*folders)
        settled, self._seen[what] = self._seen.get(what) == now, now
        return settled and self._failed.get(what) != now

    def _replace(self, place: Place, shelf: Shelf) -> None:
        task = Task("serve", self._first(place).name, False)
        try:
            fresh = self._shelf(task, place)
            with _closed_on_error(fresh):
                for model in list(shelf.libraries):
                    self._library(fresh, model)
        except Exception as e:
            self._failed[place] = self._seen[place]
            self.reopened["failed"] += 1
            _warn(e, "%s was replaced and cannot be opened: %s", _watched(place), _reason(e))
            return
        with self._lock:
            self._shelves[place] = fresh
            shelf.retired = True
        self.reopened["new"] += 1
        log.info("%s was replaced: opened anew", _watched(place))
        self._close_if_unused(shelf)

    def _replace_desk(self, model: str, desk: Desk) -> None:
        """Another generator for requests to come; those that run finish on theirs."""
        entry = next(e for e in self.entries.values() if e.values.model == model)
        try:
            fresh = self._desk(Task("serve", entry.name, False), entry)
        except Exception as e:
            self._failed[model] = self._seen[model]
            self.rewritten["failed"] += 1
            _warn(e, "model %s was replaced and cannot be opened: %s", model, _reason(e))
            return
        with self._lock:
            self._desks[model] = fresh
            self._left.append(desk)
            for shelf in self._shelves.values():  # lengths are the new one's
                shelf.libraries.pop(model, None)
        self.rewritten["new"] += 1
        log.info("model %s was replaced: new requests have the new one", model)

    def _close_left(self) -> None:
        """End the generators that were replaced and whose last request is over."""
        with self._lock:
            over = [desk for desk in self._left if not desk.users]
            self._left = [desk for desk in self._left if desk.users]
        for desk in over:
            desk.close()

    def _close_if_unused(self, shelf: Shelf) -> None:
        with self._lock:
            unused = shelf.retired and not shelf.users
        if unused and shelf.ahead:
            shelf.retriever.close()

    def close(self) -> None:
        """Finish what runs and end all threads; an entry that is being opened is waited for."""
        self._closing = True
        with self._turn:
            for worker in (*self._desks.values(), *self._left, *self._searchers.values()):
                worker.close()
            for shelf in self._shelves.values():
                shelf.retired = True
                self._close_if_unused(shelf)


@contextlib.contextmanager
def _closed_on_error(shelf: Shelf) -> Iterator[None]:
    """An engine that turns out to be of no use does not keep its threads and memory."""
    try:
        yield
    except BaseException:
        if shelf.ahead:
            shelf.retriever.close()
        raise


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, QuarryError) else f"{type(error).__name__}: {error}"


def _warn(error: Exception, message: str, *args: Any) -> None:
    """With the traceback, if nobody foresaw the error."""
    log.warning(message, *args, exc_info=None if isinstance(error, QuarryError) else error)


def identify(*folders: Path) -> Identity:
    """What tells folders from others that took their places; empty if none is there."""
    return tuple(row for folder in folders for row in _identify(folder))


def _identify(folder: Path) -> Identity:
    try:
        stats = [(f.relative_to(folder).as_posix(), f.stat()) for f in sorted(folder.rglob("*"))]
    except OSError:
        return ()
    return tuple((name, s.st_ino, s.st_mtime_ns, s.st_size) for name, s in stats)


def _folders(place: Place) -> list[Path]:
    """Of the corpus, the index and the encoder."""
    named = zip(("ingest", "index", "finetune"), place[:3], strict=True)
    return [Path("data") / room / name for room, name in named if name != NONE]


def _writer(model: str) -> Path:
    return Path("data/finetune") / model


def _needed(entry: Entry) -> list[Path]:
    """All that the entry is opened from."""
    model = entry.values.model
    return _folders(entry.place) + ([] if model == NONE else [_writer(model)])


def _watched(place: Place) -> Path:
    """The folder whose replacement counts."""
    if place.index == NONE:
        return Path("data/ingest") / place.corpus
    return Path("data/index") / place.index


def _kind(index: str) -> str:
    return str(params.entry_values("index", index).get("kind"))
