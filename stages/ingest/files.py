"""A folder of documents: text, Markdown, HTML and PDF, read recursively.

A document's id is its path in the folder. HTML gives its main text (trafilatura: Barbaresi, ACL
2021), PDF its text layer (pypdf) without running heads and with words joined that a line's end
had parted; ``meta.pages`` says at which character each page begins. Both are slow and depend on
the bytes alone, so they go through the record store. Other kinds of files are counted under
``ignored`` in stats.json. Encodings are found (mark, declaration, UTF-8, detection) and never
forced: what fits none is set aside, and so is what the system does not let us read. A folder
without one file of these kinds is an error: an unmounted folder is no empty corpus.
"""

import codecs
import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import charset_normalizer
from pydantic import Field
from tqdm import tqdm

from stages.digest import digest, file_digest
from stages.errors import QuarryError
from stages.ingest.chunk import ChunkParams
from stages.ingest.lines import canonical_json
from stages.ingest.source import (
    RAW_BYTES,
    BadRow,
    Raw,
    Reject,
    Source,
    SourceParams,
    reject,
)  # fmt: skip
from stages.records import RecordStore
from stages.text import canonicalise

VERSION = "2"  # part of the record keys of extracted texts
BATCH = 16  # files extracted between two writes to the record store
CHARS_PER_PAGE = 20  # a PDF with fewer has no text layer worth the name
EDGE_LINES = 2  # at the top and at the foot of a page, where running heads are

log = logging.getLogger(__name__)
logging.getLogger("pypdf").setLevel(logging.ERROR)
logging.getLogger("trafilatura").setLevel(logging.CRITICAL)


class Params(SourceParams):
    """An entry with ``source: files``; ``path`` is the folder."""

    chunk: ChunkParams = ChunkParams(mode="cdc")
    max_bytes: int = Field(67_108_864, gt=0)  # larger files are set aside: oversize
    max_seconds: float = Field(60, gt=0)  # of the processor, to extract a file; else: timeout


class Extract(NamedTuple):
    """What a file says."""

    title: str  # "" where the file names none
    text: str
    meta: dict


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The files below ``path`` in the order of their names; hidden ones are left out.

    Raises:
        QuarryError: none of them is of a kind that is read here.
    """
    files, rejects = ([path], []) if path.is_file() else _walk(path)
    root = path.parent if path.is_file() else path
    known = [p for p in files if p.suffix.lower() in _READERS]
    others = (p for p in files if p.suffix.lower() not in _READERS)
    ignored = dict(
        sorted(Counter(_printable(p.suffix.lower()) or "no suffix" for p in others).items())
    )
    if not known:
        there = ", ".join(f"{n} {suffix}" for suffix, n in ignored.items()) or "no other file"
        there += "".join(f"; {r.locator}: {r.detail}" for r in rejects[:3])
        raise QuarryError(
            f"{path}: expected files in {', '.join(_READERS)}; there is none of them, and {there}. "
            f"Name the folder that holds the documents, and see that it is mounted."
        )
    return Source(
        chain(rejects, _documents(root, known, params, store)), notes={"ignored": ignored}
    )


def _walk(root: Path) -> tuple[list[Path], list[Reject]]:
    """Files in the order of their names, and the folders that cannot be listed."""
    failed: list[OSError] = []
    files: list[Path] = []
    for folder, below, names in os.walk(root, onerror=failed.append):
        below[:] = [name for name in below if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        files.extend(filter(_may_be_read, paths))
    failed.sort(key=lambda e: e.filename)
    return sorted(files), [
        reject(_locator(root, Path(e.filename)), "unreadable", f"folder: {e.strerror}", b"")
        for e in failed
    ]


def _may_be_read(path: Path) -> bool:
    """No pipe, socket or device. What cannot be looked at counts: its row will say why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _printable(name: str) -> str:
    r"""A name from the file system with ``\xff`` for bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _locator(root: Path, path: Path) -> str:
    return _printable(path.relative_to(root).as_posix())


def _documents(
    root: Path, files: list[Path], params: Params, store: RecordStore
) -> Iterator[Raw | Reject]:
    extracted = _extract_slow(files, params, store)
    for path in files:
        docid, raw = _locator(root, path), b""
        try:
            if (size := path.stat().st_size) > params.max_bytes:
                yield _oversize(path, docid, f"{size} bytes, max_bytes is {params.max_bytes}")
                continue
            raw = path.read_bytes()
            if docid != path.relative_to(root).as_posix():
                raise BadRow("decode", "the file's name is not UTF-8")
            doc = _unpack(extracted[path]) if path in extracted else extract(path, raw)
            if not doc.text.strip():
                raise BadRow("empty_text", "no text in the file")
        except OSError as e:
            yield reject(docid, "unreadable", e.strerror or type(e).__name__, raw)
            continue
        except BadRow as e:
            yield reject(docid, e.code, e.detail, raw)
            continue
        title = doc.title or path.stem.replace("_", " ").replace("-", " ")
        meta = {"format": path.suffix.lower().lstrip("."), **doc.meta}
        yield Raw(docid, title, doc.text, docid, canonical_json(meta), raw)


def _oversize(path: Path, docid: str, detail: str) -> Reject:
    with path.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        f.seek(0)
        return Reject(docid, "oversize", detail, f.read(RAW_BYTES), sha256)


# -- records: one per content of a slow file ------------------------------------------------------


def _extract_slow(files: list[Path], params: Params, store: RecordStore) -> dict[Path, bytes]:
    """The records of the slow files that can be read.

    As ``RecordStore.compute``, but that a file which took too long leaves nothing in the store:
    the next run tries it again.
    """
    keys: dict[Path, str] = {}
    for path in files:
        # One that cannot be read is left to the caller, who says so in its row.
        with contextlib.suppress(OSError):
            if path.suffix.lower() in _SLOW and path.stat().st_size <= params.max_bytes:
                keys[path] = _key(path, params.max_seconds)
    records = store.get_many(list(keys.values()))
    todo = {key: path for path, key in keys.items() if key not in records}
    with tqdm(total=len(todo), unit="file", disable=None, delay=2) as bar:
        for at in range(0, len(todo), BATCH):
            part = list(todo)[at : at + BATCH]
            fresh = {key: _record(todo[key], params.max_seconds) for key in part}
            store.put_many({k: r for k, r in fresh.items() if not r.startswith(_TIMED_OUT)})
            records |= fresh
            bar.update(len(part))
    log.info("%d files: %d reused, %d computed", len(keys), len(keys) - len(todo), len(todo))
    return {path: records[key] for path, key in keys.items()}


def _key(path: Path, seconds: float) -> str:
    library = _SLOW[path.suffix.lower()]
    return digest("extract", VERSION, library, version(library), str(seconds), file_digest(path))


def _record(path: Path, seconds: float) -> bytes:
    try:
        with _time_limit(seconds):
            value = {"doc": extract(path, path.read_bytes())._asdict()}
    except BadRow as e:
        value = {"code": e.code, "detail": e.detail}
    return json.dumps(value, sort_keys=True).encode()


_TIMED_OUT = b'{"code": "timeout"'  # how such a record begins


class _TimeUp(BaseException):
    """No ``Exception``: parsers catch those and go on."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A ``BadRow`` if the block takes longer; code in C is stopped when it is back in Python.

    Seconds are of this process on a processor, so that a busy machine sets nothing aside. A loop
    in C that never comes back (a parser's own bug) is not stopped. Signals reach the main thread
    alone: there is no limit in others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TimeUp:
        raise BadRow("timeout", f"not read within {seconds:g} s (max_seconds)") from None
    finally:
        signal.signal(signal.SIGPROF, before)


def _unpack(record: bytes) -> Extract:
    value = json.loads(record)
    if "code" in value:
        raise BadRow(value["code"], value["detail"])
    return Extract(**value["doc"])


# -- formats --------------------------------------------------------------------------------------


def extract(path: Path, raw: bytes) -> Extract:
    """A file's title and text by its suffix.

    Raises:
        BadRow: it cannot be read as what its suffix says.
    """
    return _READERS[path.suffix.lower()](raw)


def _read_text(raw: bytes) -> Extract:
    return Extract("", decode(raw), {})


def _read_markdown(raw: bytes) -> Extract:
    text = decode(raw)
    heading = re.search(r"^#{1,6}\s+(.+?)\s*#*\s*$", text, re.M)
    return Extract(heading[1] if heading else "", text, {})


def _read_html(raw: bytes) -> Extract:
    import trafilatura

    declared = re.search(rb"<meta[^>]{0,200}charset=[\"' ]?([\w-]+)", raw[:4096], re.I)
    html = decode(raw, _charset(declared[1].decode()) if declared else "")
    try:
        page = trafilatura.bare_extraction(html, include_comments=False, with_metadata=True)
    except Exception as e:  # a broken page breaks the parser in any way
        raise BadRow("html_broken", f"{type(e).__name__}: {e}") from None
    if page is None or not (page.text or "").strip():
        raise BadRow("html_empty", "no main text in the page")
    return Extract(page.title or "", page.text.replace("\n", "\n\n"), {})  # a line, a paragraph


def _charset(declared: str) -> str:
    """The name of a codec that a page may declare, "" for another word.

    Python's codecs hold some that are no charsets; and a page whose declaration is found byte by
    byte is not in one of 16 or 32 bits (WHATWG, Encoding: read it as UTF-8).
    """
    try:
        name = codecs.lookup(declared).name
    except LookupError:
        return ""
    return "" if re.match("undefined|punycode|idna|.*escape|utf-(?:16|32)", name) else name


def _read_pdf(raw: bytes) -> Extract:
    import pypdf

    try:
        reader = pypdf.PdfReader(BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadRow("pdf_encrypted", "needs a password")
        pages = [page.extract_text() for page in reader.pages]
        title = (reader.metadata.title if reader.metadata else "") or ""
    except BadRow:
        raise
    except pypdf.errors.DependencyError as e:
        raise BadRow("pdf_encrypted", str(e)) from None
    except Exception as e:  # a broken file breaks the parser in any way
        raise BadRow("pdf_broken", f"{type(e).__name__}: {e}") from None
    if sum(len(p.strip()) for p in pages) < CHARS_PER_PAGE * max(1, len(pages)):
        raise BadRow("pdf_needs_ocr", f"{len(pages)} pages hardly any of which has text")
    return join_pages(title, pages)


def join_pages(title: str, pages: list[str]) -> Extract:
    """Pages as one canonical text, and at which character each begins: [page, start]."""
    starts, texts, at = [], [], 0
    for number, page in enumerate(drop_running_heads(pages), start=1):
        page = re.sub(r"([^\W\d_])-\n([^\W\d_])", _rejoin, canonicalise(page))
        if page:
            starts.append([number, at])
            texts.append(page)
            at += len(page) + 1
    return Extract(title, "\n".join(texts), {"pages": starts})


def _rejoin(m: re.Match[str]) -> str:
    """A word parted at a line's end; before a capital the hyphen was the word's own."""
    return m[1] + ("" if m[2].islower() else "-") + m[2]


def drop_running_heads(pages: list[str]) -> list[str]:
    """Pages without the first and last lines that stand, but for digits, on more than half of
    them at the same place. Of fewer than three pages nothing is dropped."""
    lines = [p.strip().split("\n") for p in pages]
    places = [*range(EDGE_LINES), *range(-EDGE_LINES, 0)]
    drop: list[set[int]] = [set() for _ in pages]
    for place in places if len(pages) > 2 else []:
        seen = [_shape(ls[place]) if len(ls) > 2 * EDGE_LINES else "" for ls in lines]
        for i, shape in enumerate(seen):
            if shape and seen.count(shape) > len(pages) / 2:
                drop[i].add(place % len(lines[i]))
    return [
        "\n".join(line for j, line in enumerate(ls) if j not in out)
        for ls, out in zip(lines, drop, strict=True)
    ]


def _shape(line: str) -> str:
    return re.sub(r"\d+", "0", line.strip().lower())


def decode(raw: bytes, declared: str = "") -> str:
    """Text by its byte-order mark, as declared, as UTF-8, or in the encoding that fits best.

    Raises:
        BadRow: it fits none.
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    marked = next((name for mark, name in marks.items() if raw.startswith(mark)), "")
    for encoding in filter(None, (marked, declared, "utf-8")):
        try:
            return raw.decode(encoding)
        except (UnicodeError, LookupError):  # not all codecs raise UnicodeDecodeError
            continue
    best = charset_normalizer.from_bytes(raw).best()
    if best is None:
        raise BadRow("decode", "text in no encoding that could be found")
    return str(best)


_READERS: dict[str, Callable[[bytes], Extract]] = {
    ".txt": _read_text, ".md": _read_markdown, ".markdown": _read_markdown,
    ".html": _read_html, ".htm": _read_html, ".pdf": _read_pdf,
}  # fmt: skip
# Suffix -> the library whose version is part of the record's key.
_SLOW = {".html": "trafilatura", ".htm": "trafilatura", ".pdf": "pypdf"}
