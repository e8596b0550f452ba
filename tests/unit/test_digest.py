"""Content addresses: the same everywhere, and different for different content."""

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.digest import digest, file_digest, folder_digest, uniform

TEXT = st.text(st.characters(exclude_characters="\x1f"), max_size=8)


def test_a_digest_is_blake2b_of_the_fields_each_closed_by_a_separator() -> None:
    expected = hashlib.blake2b("é\x1fb\x1f".encode(), digest_size=16).hexdigest()
    assert digest("é", "b") == expected


@given(one=st.lists(TEXT, max_size=4), other=st.lists(TEXT, max_size=4))
def test_different_field_lists_have_different_digests(one, other) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_lone_surrogate_has_a_digest() -> None:
    assert digest("\ud800") != digest("\ud801")


def test_uniform_is_spread_evenly_over_the_unit_interval() -> None:
    values = np.array([uniform(str(i)) for i in range(4000)])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.9)


def test_a_file_larger_than_a_block_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert file_digest(tmp_path / "f") == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_folder_digest_sees_names_bytes_and_places(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder_digest(tmp_path / name, skip=frozenset({"skipped"}))

    base = folder("a", {"x": b"1", "sub/y": b"2"})
    assert folder("b", {"sub/y": b"2", "x": b"1", "skipped": b"3"}) == base
    others = [
        {"x": b"1", "y": b"2"},
        {"x": b"1", "sub/y": b"3"},
        {"x": b"1"},
        {"x": b"1", "sub/z": b"2"},
    ]
    assert len({base, *(folder(f"o{i}", f) for i, f in enumerate(others))}) == 5
