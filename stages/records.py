"""The record store: what was computed once for a record is not computed again.

Keys are digests of everything that decides a result (the record's content, the model's
fingerprint, the parameters, the version of the code's idea); values are bytes with a checksum.
The store lives outside the stages' outputs, can be shared between checkouts (``QUARRY_RECORDS``)
and may be deleted at any time: results never depend on it, only how long they take.

SQLite in write-ahead mode: several stages may use it at once, and ``kill -9`` leaves it whole.
"""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
R = TypeVar("R")

DEFAULT = Path(".quarry/records")
LIMIT_BYTES = int(os.environ.get("QUARRY_RECORDS_BYTES", 8 * 2**30))
CHUNK = 500  # keys per SELECT; SQLite's oldest limit on variables is 999

# 50,000 vectors of 1.5 kB: 1.5 s and 84 MB; WITHOUT ROWID in pages of 4 kB took 7.8 s and 234 MB.
_SETTINGS = ("page_size=16384", "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=NORMAL")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, used INTEGER NOT NULL
)
"""


Engine = Literal["local", "ray"]  # of an entry; what an engine is: stages/engines.py
Batch = tuple[list[str], list[Any]]  # keys, and a record for each
Made = tuple[list[str], Sequence[bytes | None]]  # keys, and a value for each
Compute = Callable[[list[Any]], Sequence[bytes | None]]


class Apply(Protocol):
    """Who computes what the store lacks; another one than ``apply_here``: ``stages.engines``."""

    def __call__(self, fn: Compute, batches: Iterator[Batch], *, cores: int) -> Iterator[Made]:
        """``fn`` on the records of every batch, in any order; a call of it takes ``cores``."""
        ...


def apply_here(fn: Compute, batches: Iterator[Batch], *, cores: int) -> Iterator[Made]:
    """One batch after another, in this process."""
    for keys, records in batches:
        yield keys, fn(records)


def _checksum(key: str, value: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + value, digest_size=8).digest()


class RecordStore:
    """A checksummed, size-bounded map from digest to bytes, safe for several processes."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        limit_bytes: int = LIMIT_BYTES,
        apply: Apply = apply_here,
    ) -> None:
        self.apply = apply
        self.folder = folder or Path(os.environ.get("QUARRY_RECORDS", DEFAULT))
        self.limit_bytes = limit_bytes
        self.hits = self.misses = self.corrupt = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "records.sqlite"
        self._on_sound_database(self._connect)

    def _connect(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=120, isolation_level=None)
        for setting in _SETTINGS:
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute(_SCHEMA)

    def _on_sound_database(self, do: Callable[[], R]) -> R:
        """What ``do`` returns; a database found damaged is moved aside and started anew."""
        try:
            return do()
        except sqlite3.OperationalError:  # locked, disk full: not damage
            raise
        except sqlite3.DatabaseError as e:
            aside = self.path.with_suffix(f".corrupt-{time.time_ns()}")
            log.warning("record store %s is damaged (%s); moved to %s", self.path, e, aside.name)
            self._db.close()
            for suffix in ("", "-wal", "-shm"):
                damaged = Path(f"{self.path}{suffix}")
                if damaged.exists():
                    damaged.rename(f"{aside}{suffix}")
            self._connect()
            return do()

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values there are. One that fails its checksum is dropped and counts as missing."""
        wanted = list(dict.fromkeys(keys))
        found = self._on_sound_database(lambda: self._select(wanted))
        self.hits += len(found)
        self.misses += len(wanted) - len(found)
        return found

    def _select(self, wanted: list[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for at in range(0, len(wanted), CHUNK):
            part = wanted[at : at + CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(
                f"SELECT key, value, checksum FROM records WHERE key IN ({marks})",  # noqa: S608
                part,
            ).fetchall()
            for key, value, checksum in rows:
                if _checksum(key, value) == checksum:
                    found[key] = value
                else:
                    self.corrupt += 1
                    self._db.execute("DELETE FROM records WHERE key = ?", (key,))
        self._touch(list(found))
        return found

    def _touch(self, keys: list[str]) -> None:
        now = int(time.time())  # decides eviction only
        for at in range(0, len(keys), CHUNK):
            part = keys[at : at + CHUNK]
            marks = ",".join("?" * len(part))
            self._db.execute(
                f"UPDATE records SET used = ? WHERE used < ? AND key IN ({marks})",  # noqa: S608
                (now, now - 86_400, *part),
            )

    def put_many(self, items: dict[str, bytes]) -> None:
        """Keep these, in one transaction: after a crash all of them are there, or none."""
        now = int(time.time())
        rows = [(k, v, _checksum(k, v), now) for k, v in items.items()]
        insert = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)"
        self._on_sound_database(lambda: self._write(insert, rows))

    def _write(self, statement: str, rows: list[tuple]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(statement, rows)
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def compute(
        self,
        keys: Sequence[str],
        records: Sequence[Any],
        fn: Compute,
        *,
        batch: int,
        unit: str,
        cores: int = 1,
    ) -> list[Any]:
        """One value per key, in order; ``fn`` runs on batches of records whose keys are new.

        Equal keys are computed once. Every batch is kept as soon as it is made, so a killed
        process loses no more than what was being computed. A None is given back and not kept:
        the next run computes it again. A record is looked up when its batch is due.
        """
        assert len(keys) == len(records), (len(keys), len(records))
        known = self.get_many(keys)
        todo = {k: i for i, k in enumerate(keys) if k not in known}
        names = list(todo)
        parts = (names[at : at + batch] for at in range(0, len(names), batch))
        batches = ((part, [records[todo[k]] for k in part]) for part in parts)
        with tqdm(total=len(names), unit=unit, disable=None, delay=2) as bar:
            for part, values in self.apply(fn, batches, cores=cores):
                fresh = dict(zip(part, values, strict=True))
                self.put_many({k: v for k, v in fresh.items() if v is not None})
                known |= fresh
                bar.update(len(part))
        log.info(
            "%d %ss: %d reused, %d computed", len(keys), unit, len(keys) - len(todo), len(todo)
        )
        return [known[k] for k in keys]

    def size_bytes(self) -> int:
        """Bytes of the values kept."""
        return self._db.execute("SELECT COALESCE(SUM(LENGTH(value)), 0) FROM records").fetchone()[0]

    def evict(self) -> int:
        """Drop the least recently used records until the store fits; how many were dropped."""
        over = self.size_bytes() - self.limit_bytes
        oldest = "SELECT key, LENGTH(value) FROM records ORDER BY used, key"
        drop = []
        for key, size in self._db.execute(oldest).fetchall() if over > 0 else []:
            if over <= 0:
                break
            drop.append((key,))
            over -= size
        self._write("DELETE FROM records WHERE key = ?", drop)
        self._db.executescript("PRAGMA incremental_vacuum")  # execute() gives back one page only
        log.info("record store: %d least recently used records dropped", len(drop))
        return len(drop)

    def close(self) -> None:
        """Evict what is over the limit and close."""
        if Path(self.path).stat().st_size > self.limit_bytes:
            self.evict()
        self._db.close()

    def __enter__(self) -> "RecordStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
