"""Text, Markdown, HTML and PDF: what is read of them, and what is set aside."""

import contextlib
import hashlib
import os
import re
import time
import zlib
from pathlib import Path

import pytest
from ingest_corpora import column, ingest, rows

from stages.errors import QuarryError
from stages.ingest import files
from stages.ingest.files import decode, drop_running_heads, join_pages
from stages.ingest.source import CODES, BadRow
from stages.tables import TABLES

PAGE = """<html><head><title>Dust and water</title></head><body>
<nav><a href="/">Home</a> | <a href="/imprint">Imprint</a></nav><article>
<p>Most of the dust in a quarry is made by wheels, and the road is watered twice a shift.</p>
<p>The crusher has spray bars at its mouth; they use eleven litres for each tonne of stone.</p>
</article><footer>Cookie settings</footer></body></html>"""


NOISE = bytes(range(128, 256)) * 30 + b"\x00\x01\x02" * 99


def pdf(*pages: str, title: str = "", encrypt: bool = False) -> bytes:
    """A PDF with one line of Helvetica a text line; "" gives a page without text."""
    bodies = [
        "BT /F1 12 Tf 72 720 Td 14 TL "
        + " ".join(f"({line}) Tj T*" for line in page.split("\n") if line) + " ET"
        for page in pages
    ]  # fmt: skip
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for i, body in enumerate(bodies):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(body)} >>\nstream\n{body}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R"
    if encrypt:
        key = "00" * 32
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >>")
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<00> <00>]"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{at:010d} 00000 n \n" for at in places)
    xref = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return out + f"{xref}trailer << {trailer} >>\nstartxref\n{len(out)}\n%%EOF".encode()


def test_each_format_gives_its_title_and_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/opening_hours.txt").write_text("The library opens at eight.")
    (folder / "a.md").write_text("intro\n\n## How to *lend* ##\n\nBring a card.")
    (folder / "b.html").write_text(PAGE)
    (folder / "c.pdf").write_bytes(pdf("The quarry opens\nat six in the morning.", title="Hours"))
    (folder / "photo.PNG").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("not read")
    corpus = ingest("files", folder, tmp_path / "r")
    found = {r["docid"]: r for r in rows(corpus, "documents")}
    assert {d: r["title"] for d, r in found.items()} == {
        "deep/er/opening_hours.txt": "opening hours", "a.md": "How to *lend*",
        "b.html": "Dust and water", "c.pdf": "Hours",
    }  # fmt: skip
    html = found["b.html"]["text"]
    assert html.count("\n\n") == 1 and html.startswith("Most of the dust") and "Cookie" not in html
    assert "Imprint" not in html and "eleven litres" in html
    assert found["c.pdf"]["text"] == "The quarry opens\nat six in the morning."
    assert found["c.pdf"]["meta"] == '{"format":"pdf","pages":[[1,0]]}'
    assert corpus.stats["ignored"] == {".png": 1}
    assert corpus.stats["documents"]["read"] == 4


def test_what_cannot_be_read_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    text = "A line that is long enough to count."
    bad = {
        "scan.pdf": (pdf("", "", ""), "pdf_needs_ocr"),
        "locked.pdf": (pdf(text, encrypt=True), "pdf_encrypted"),
        "broken.pdf": (b"%PDF-1.4 and no more", "pdf_broken"),
        "cut.pdf": (zlib.compress(b"x" * 99), "pdf_broken"),
        "nav.html": (b"<html><body><script>go()</script></body></html>", "html_empty"),
        "blank.txt": (b" \n\t\n", "empty_text"),
        "noise.txt": (NOISE, "decode"),
        "big.txt": (b"x" * 5000, "oversize"),
        "long.txt": (b"y" * 2000, "too_long"),
    }
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "good.txt").write_text("Good.")
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    corpus = ingest("files", folder, tmp_path / "r", max_bytes=4500, max_chars=1000)
    assert {r["locator"]: r["code"] for r in rows(corpus, "quarantine")} == {
        name: code for name, (_, code) in bad.items()
    }
    assert column(corpus, "documents", "docid") == ["good.txt"]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "unicode_escape", "utf-16"])
def test_a_page_that_declares_what_is_no_charset_is_read_all_the_same(
    tmp_path: Path, charset: str
) -> None:
    (tmp_path / "f").mkdir()
    page = PAGE.replace("<head>", f'<head><meta charset="{charset}">').replace("wheels", "Räder")
    (tmp_path / "f/a.html").write_text(page, encoding="utf-8")
    (text,) = column(ingest("files", tmp_path / "f", tmp_path / "r"), "documents", "text")
    assert text.startswith("Most of the dust in a quarry is made by Räder")


def test_a_codec_that_raises_in_its_own_way_is_one_that_does_not_fit() -> None:
    assert decode(b"plain", "undefined") == "plain"


def test_a_page_that_breaks_its_parser_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trafilatura

    def breaks(*_: object, **__: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(trafilatura, "bare_extraction", breaks)
    (tmp_path / "f").mkdir()
    (tmp_path / "f/a.html").write_text(PAGE)
    (row,) = rows(ingest("files", tmp_path / "f", tmp_path / "r"), "quarantine")
    assert (row["code"], row["detail"]) == ("html_broken", "RecursionError: too deep")


def test_a_name_that_is_not_utf8_is_set_aside_under_an_escaped_locator(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / os.fsdecode(b"d\xe9")).mkdir(parents=True)
    (folder / "good.txt").write_text("Good.")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"Coffee.")
    (folder / os.fsdecode(b"d\xe9/a.html")).write_text(PAGE)
    (folder / os.fsdecode(b"x.\xff")).write_bytes(b"")
    corpus = ingest("files", folder, tmp_path / "r")
    found = {r["locator"]: r for r in rows(corpus, "quarantine")}
    assert {at: r["code"] for at, r in found.items()} == {
        "caf\\xe9.txt": "decode", "d\\xe9/a.html": "decode",
    }  # fmt: skip
    assert found["caf\\xe9.txt"]["raw_sha256"] == hashlib.sha256(b"Coffee.").hexdigest()
    assert column(corpus, "documents", "docid") == ["good.txt"]
    assert corpus.stats["ignored"] == {".\\xff": 1}


def test_files_and_folders_that_cannot_be_read_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not hold for root, who runs the tests in a container: they are played."""
    folder = tmp_path / "f"
    (folder / "shut").mkdir(parents=True)
    for name in ("good.txt", "mine.txt", "mine.html", "shut/in.txt"):
        (folder / name).write_text("Text.")
    (folder / "gone.pdf").symlink_to(folder / "nowhere.pdf")
    os.mkfifo(folder / "pipe.txt")  # reading it would wait for ever
    opened, listed = Path.open, os.scandir

    def open_unless_mine(path: Path, *args: object, **kwargs: object) -> object:
        if path.stem == "mine":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    def list_unless_shut(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "open", open_unless_mine)
    monkeypatch.setattr(os, "scandir", list_unless_shut)
    corpus = ingest("files", folder, tmp_path / "r")
    assert {r["locator"]: (r["code"], r["detail"]) for r in rows(corpus, "quarantine")} == {
        "mine.txt": ("unreadable", "Permission denied"),
        "mine.html": ("unreadable", "Permission denied"),
        "gone.pdf": ("unreadable", "No such file or directory"),
        "shut": ("unreadable", "folder: Permission denied"),
    }
    assert column(corpus, "documents", "docid") == ["good.txt"]
    assert corpus.stats["documents"]["read"] == 5


def test_a_folder_without_documents_is_an_error_and_one_with_an_empty_document_is_none(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(QuarryError) as e:
        ingest("files", folder, tmp_path / "r")
    assert str(e.value) == (
        f"{folder}: expected files in .txt, .md, .markdown, .html, .htm, .pdf; there is none of "
        f"them, and no other file. Name the folder that holds the documents, and see that it is "
        f"mounted."
    )
    (folder / "a.png").write_bytes(b"")
    (folder / "b.PNG").write_bytes(b"")
    for path in (folder, folder / "a.png"):
        with pytest.raises(QuarryError, match=r"none of them, and \d \.png"):
            ingest("files", path, tmp_path / "r")
    (folder / "empty.txt").write_text("")
    corpus = ingest("files", folder, tmp_path / "r")
    assert corpus.tables["documents"].num_rows == 0
    assert column(corpus, "quarantine", "code") == ["empty_text"]


def test_a_file_that_takes_too_long_is_set_aside_even_if_its_parser_catches_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn(raw: bytes) -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    monkeypatch.setitem(files._READERS, ".pdf", stubborn)
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "bomb.pdf").write_bytes(pdf("Text."))
    (folder / "good.txt").write_text("Good.")
    corpus = ingest("files", folder, tmp_path / "r", max_seconds=0.1)
    (row,) = rows(corpus, "quarantine")
    assert (row["locator"], row["code"]) == ("bomb.pdf", "timeout")
    assert row["detail"] == "not read within 0.1 s (max_seconds)"
    assert column(corpus, "documents", "docid") == ["good.txt"]


def test_a_file_that_took_too_long_once_is_tried_again_and_not_for_ever_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm store gives what an empty one gives: it holds no accident."""
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.html").write_text(PAGE)
    read = files._READERS[".html"]
    read(PAGE.encode())  # the parser's import is no part of what is timed

    def slow(raw: bytes) -> None:
        while True:
            sum(range(1000))

    monkeypatch.setitem(files._READERS, ".html", slow)
    corpus = ingest("files", folder, tmp_path / "r", max_seconds=0.5)
    assert column(corpus, "quarantine", "code") == ["timeout"]
    monkeypatch.setitem(files._READERS, ".html", read)
    warm = ingest("files", folder, tmp_path / "r", max_seconds=0.5)
    cold = ingest("files", folder, tmp_path / "empty", max_seconds=0.5)
    assert column(warm, "documents", "docid") == ["a.html"]
    assert all(warm.tables[k].equals(cold.tables[k]) for k in warm.tables)


def test_waiting_for_a_busy_machine_is_not_taking_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = files._READERS[".html"]
    read(PAGE.encode())  # the parser's import is no part of what is timed
    monkeypatch.setitem(files._READERS, ".html", lambda raw: time.sleep(0.7) or read(raw))
    (tmp_path / "f").mkdir()
    (tmp_path / "f/a.html").write_text(PAGE)
    corpus = ingest("files", tmp_path / "f", tmp_path / "r", max_seconds=0.6)
    assert column(corpus, "documents", "docid") == ["a.html"]


def test_every_code_that_a_row_is_set_aside_with_is_declared() -> None:
    room = Path(files.__file__).parent
    source = "".join(p.read_text(encoding="utf-8") for p in room.glob("*.py"))
    used = re.findall(r"(?:BadRow\(|reject\([^\n]*?, )\"(\w+)\"", source)
    assert len(set(used)) > 10 and set(used) <= CODES


@pytest.mark.parametrize(
    ("raw", "declared"),
    [
        ("Größe – naïve €".encode("utf-8-sig"), ""),
        ("Größe – naïve €".encode("utf-16"), ""),
        ("Größe – naïve €".encode("cp1252"), "windows-1252"),
        ("Größe – naïve €".encode(), "no-such-charset"),
        (("Größe – " + "Die Straße ist naß, die Bäume blühen. " * 20).encode("cp1252"), ""),
    ],
)
def test_encodings_are_found_and_never_forced(raw: bytes, declared: str) -> None:
    assert decode(raw, declared).startswith("Größe – ")


def test_what_is_in_no_encoding_is_no_text() -> None:
    with pytest.raises(BadRow) as e:
        decode(NOISE)
    assert e.value.code == "decode"


def test_a_word_parted_at_a_lines_end_is_joined_and_pages_begin_where_meta_says() -> None:
    doc = join_pages("", ["The embank-\nment of the Rhine-\nMain road.", "", "Next  page."])
    assert doc.text == "The embankment of the Rhine-Main road.\nNext page."
    assert [doc.text[start:][:4] for _, start in doc.meta["pages"]] == ["The ", "Next"]
    assert [page for page, _ in doc.meta["pages"]] == [1, 3]


def test_running_heads_go_and_ordinary_lines_stay() -> None:
    body = ["alpha\nbeta\ngamma", "delta\nepsilon\nzeta", "eta\ntheta\niota"]
    pages = [f"Quarry Handbook\n{text}\nPage {i} of 3" for i, text in enumerate(body, start=1)]
    assert drop_running_heads(pages) == body
    assert drop_running_heads(pages[:2]) == pages[:2], "two pages say too little"


def test_extraction_is_done_once_per_content(tmp_path: Path, monkeypatch) -> None:
    from stages.ingest import files

    calls = []
    extract = files.extract
    monkeypatch.setattr(
        files, "extract", lambda path, raw: calls.append(path.name) or extract(path, raw)
    )
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.html").write_text(PAGE)
    (folder / "b.html").write_text(PAGE)
    (folder / "scan.pdf").write_bytes(pdf("", ""))
    first = ingest("files", folder, tmp_path / "r")
    assert len(calls) == 2, "equal bytes are one record"
    calls.clear()
    (folder / "c.html").write_text(PAGE.replace("wheels", "tyres"))
    second = ingest("files", folder, tmp_path / "r")
    assert calls == ["c.html"]
    scratch = ingest("files", folder, tmp_path / "empty")
    assert all(second.tables[k].equals(scratch.tables[k]) for k in TABLES if k in second.tables)
    assert column(first, "quarantine", "code") == ["pdf_needs_ocr"]
