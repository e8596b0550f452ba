"""Kind clustered: the bytes of the layout, the results of kind ivf, and what damage looks like."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from index_worlds import MOUNTAINS, built, encoder_dir, opened, passages_of

from stages import clusters
from stages.clusters import ClusterFile, checksums, lay_out, nearest_clusters, spans_of
from stages.errors import QuarryError
from stages.index import open_index
from stages.index.clustered import as_int8, cluster_arrays, int8_scale
from stages.tables import empty_table

QUERIES = ["volcano", "a river in the Alps", "Mount Fuji", "when was it climbed", ""]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("records")


def build(folder: Path, passages, store: Path, *, kind: str = "clustered", **values):
    folder.mkdir(exist_ok=True)
    cut = built(folder, "centroids", passages, store=store, nlist=3)
    given = {"centroids": cut.path, "nprobe": 2, **values}
    return built(folder, kind, passages, store=store, **given)


def layout_of(folder: Path, vectors: np.ndarray, lists: np.ndarray, nlist: int, *codecs: str):
    """The layout on the disk, with centroids of zeros."""
    folder.mkdir(exist_ok=True)
    centroids = np.zeros((nlist, vectors.shape[1]), dtype="f4")
    for name, array in cluster_arrays(vectors, lists, centroids, codecs).items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_vectors_lie_by_cluster_and_within_a_cluster_by_row() -> None:
    rows, offsets = lay_out(np.array([2, 0, 2, 0, 3], dtype=np.int32), 5)
    assert rows.tolist() == [1, 3, 0, 2, 4]
    assert offsets.tolist() == [0, 2, 2, 4, 5, 5], "clusters 1 and 4 are empty"


def test_numbers_that_follow_each_other_are_one_span() -> None:
    assert spans_of([7, 2, 3, 9, 8, 3]) == [[2, 3], [7, 8, 9]]
    assert spans_of([]) == []


def test_nearest_clusters_come_best_first_and_equal_ones_by_number() -> None:
    centroids = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], dtype="f4")
    query = np.array([[1, 0.5]], dtype="f4")
    assert nearest_clusters(query, centroids, 3).tolist() == [[0, 2, 1]]
    assert nearest_clusters(query, centroids, 1).tolist() == [[0]]
    assert nearest_clusters(query, centroids, 9).tolist() == [[0, 2, 1, 3]]
    assert nearest_clusters(query, centroids[:0], 9).shape == (1, 0)


def test_it_finds_what_ivf_finds(tmp_path, store) -> None:
    table = passages_of(MOUNTAINS)
    for nprobe in (1, 2, 3):
        ours, theirs = (
            opened(build(tmp_path / f"{kind}{nprobe}", table, store, kind=kind, nprobe=nprobe))
            for kind in ("clustered", "ivf")
        )
        for k in (1, 3, 99):
            assert ours.search(QUERIES, k) == theirs.search(QUERIES, k)
    assert ours.search([], 3) == []


def test_no_passages_and_equal_bytes_twice(tmp_path, store) -> None:
    assert opened(build(tmp_path / "0", empty_table("passages"), store)).search(["x"], 3) == [[]]
    table = passages_of(MOUNTAINS)
    a, b = (
        build(tmp_path / n, t, store, codes=["fp16", "int8"]).path
        for n, t in (("a", table), ("b", table.take([5, 3, 1, 0, 2, 4])))
    )
    names = sorted(f.name for f in a.iterdir())
    assert "codes_int8.npy" in names
    assert all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def test_what_is_opened_shows_its_parts(tmp_path, store) -> None:
    made = build(tmp_path / "c", passages_of(MOUNTAINS), store)
    index = open_index(made.path, encoder_dir("dense"))
    assert isinstance(index, clusters.Clustered)
    file = ClusterFile(index.folder)
    rows = np.concatenate([file.rows[file.offsets[c] : file.offsets[c + 1]] for c in range(3)])
    assert sorted(index.docids[rows]) == sorted(MOUNTAINS)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_short_codes_are_those_of_faiss(codec: str) -> None:
    vectors = np.random.default_rng(1).standard_normal((200, 24)).astype("f4")
    vectors[:, 3] = 0.25  # a component without a range
    kind = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[codec]
    sq = faiss.ScalarQuantizer(24, kind)
    sq.train(vectors)
    arrays = cluster_arrays(vectors, np.zeros(200, "i4"), np.zeros((1, 24), "f4"), [codec])
    ours = arrays[f"codes_{codec}"].view(np.uint8)
    theirs = sq.compute_codes(vectors)
    if codec == "int8":
        assert np.abs(ours.astype(int) - theirs).max() <= 1, "a rounding of x - low at most"
        trained = faiss.vector_to_array(sq.trained).reshape(2, 24)
        np.testing.assert_allclose(arrays["scale_int8"], trained, atol=1e-6)
    else:
        assert (ours == theirs).all()


def test_int8_of_a_value_is_its_place_in_the_range() -> None:
    vectors = np.array([[-1.0, 2.0], [1.0, 2.0], [0.0, 2.0]], dtype="f4")
    scale = int8_scale(vectors)
    assert scale.tolist() == [[-1, 2], [2, 0]]
    assert as_int8(vectors, scale).tolist() == [[0, 0], [255, 0], [127, 0]]


# -- reading, and damage ------------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> ClusterFile:
    vectors = np.arange(7 * 4, dtype="f4").reshape(7, 4)
    lists = np.array([0, 2, 2, 3, 0, 3, 3])
    return ClusterFile(layout_of(tmp_path / "store", vectors, lists, 5, "fp16"))


def test_clusters_side_by_side_are_one_read(file) -> None:
    batch = file.read([3, 0, 2])
    assert batch.n_reads == 2 and not batch.errors and batch.nbytes == 7 * 16
    assert batch.codes[2].view("f4")[:, 0].tolist() == [4, 8], "rows 1 and 2"
    assert file.read([3, 2, 1, 0, 0, 4]).n_reads == 1, "empty clusters do not part neighbours"
    assert file.read([1]).codes[1].shape == (0, 16) and file.read([1]).n_reads == 0


def test_single_vectors_are_found_by_their_place(file) -> None:
    assert file.read_positions(np.array([0, 1, 4])).view("f4")[:, 0].tolist() == [0, 16, 12]


def flip(path: Path, at: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[at] ^= 1
    path.write_bytes(blob)


def test_a_flipped_byte_is_an_error_of_its_cluster_alone(file, tmp_path) -> None:
    flip(tmp_path / "store" / "codes.npy", -1)  # the last byte: cluster 3
    batch = ClusterFile(tmp_path / "store").read([0, 2, 3])
    assert sorted(batch.codes) == [0, 2] and list(batch.errors) == [3]
    assert "index 'store', cluster 3: other bytes" in str(batch.errors[3])


def test_single_vectors_of_a_damaged_cluster_are_not_given_out(file, tmp_path) -> None:
    flip(tmp_path / "store" / "codes.npy", -1)  # of place 6; place 4 is in the same cluster
    damaged = ClusterFile(tmp_path / "store")
    with pytest.raises(QuarryError, match="index 'store', cluster 3: other bytes"):
        damaged.read_positions(np.array([0, 4]))
    assert damaged.read_positions(np.array([0, 3])).view("f4")[:, 0].tolist() == [0, 8]


def test_a_cluster_is_verified_before_its_first_single_vector_only(file, monkeypatch) -> None:
    checked, real = [], clusters._check
    monkeypatch.setattr(
        clusters, "_check", lambda codes, rows: checked.append(len(codes)) or real(codes, rows)
    )
    file.read_positions(np.array([0, 5]))
    file.read_positions(np.array([0, 1, 4, 6]))
    assert checked == [2, 3], "clusters 0 and 3"


def test_a_file_cut_short_while_open_costs_the_clusters_at_its_end(file, tmp_path) -> None:
    path = tmp_path / "store" / "codes.npy"
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 1)
    batch = file.read([0, 2, 3])
    assert sorted(batch.codes) == [0, 2]
    assert "cluster 3: codes.npy ends before byte" in str(batch.errors[3])
    with pytest.raises(QuarryError, match="index 'store': codes.npy is cut short"):
        ClusterFile(tmp_path / "store")
    with pytest.raises(QuarryError, match="cluster 3: codes.npy ends"):
        file.read_positions(np.array([6]))


def test_reading_a_closed_file_is_an_error_that_says_so(file) -> None:
    file.close()
    assert "was closed" in str(file.read([0]).errors[0])


def test_codes_that_are_not_there_or_damaged_arrays_are_refused(file, tmp_path) -> None:
    with pytest.raises(QuarryError, match=r"no int8 codes. Add codes: \[int8\] to its entry"):
        ClusterFile(tmp_path / "store", "int8")
    (tmp_path / "store" / "offsets.npy").write_bytes(b"x")
    with pytest.raises(QuarryError, match="index 'store'.*Rebuild it with: dvc repro -f"):
        ClusterFile(tmp_path / "store")


SEALED = ["centroids", "rows", "scale_int8", "checks", "checks_int8", "seal"]


@pytest.fixture
def sealed(tmp_path) -> Path:
    vectors = np.arange(7 * 4, dtype="f4").reshape(7, 4)
    return layout_of(tmp_path / "s", vectors, np.array([0, 2, 2, 3, 0, 3, 3]), 5, "fp16", "int8")


@pytest.mark.parametrize("name", SEALED)
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_flipped_byte_of_a_small_array_refuses_the_index(sealed, name: str, codec: str) -> None:
    ClusterFile(sealed, codec).close()
    flip(sealed / f"{name}.npy", -8)
    with pytest.raises(QuarryError, match=r"index 's': .*\(seal.npy\). Rebuild it with: dvc"):
        ClusterFile(sealed, codec)


@pytest.mark.parametrize(
    "offsets", [[1, 2, 2, 4, 7, 7], [0, 2, 2, 4, 7, 6], [0, 4, 2, 4, 7, 7], [0, 2, 2, 4, 7, 8]]
)
def test_offsets_that_do_not_rise_from_none_to_all_are_refused(sealed, offsets) -> None:
    np.save(sealed / "offsets.npy", np.array(offsets))
    with pytest.raises(QuarryError, match="index 's': offsets.npy does not rise from 0 to 7"):
        ClusterFile(sealed)


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("offsets", np.array([0.0, 2, 2, 4, 7, 7]), r"offsets.npy has numbers of type float64"),
        ("rows", np.zeros((7, 1), "i8"), r"rows.npy has .* shape \(7, 1\)"),
        ("centroids", np.zeros((5, 4)), "centroids.npy has numbers of type float64"),
        ("centroids", np.zeros((6, 4), "f4"), "its arrays are of different lengths"),
        ("checks_fp16", np.zeros(4, "u8"), "its arrays are of different lengths"),
        ("scale_int8", np.zeros((2, 3), "f4"), "scale_int8.npy is not two rows of 4"),
        ("codes", np.zeros((7, 4), "i4"), "codes.npy has int32"),
        ("codes", np.zeros((7, 8), "f4"), r"codes.npy has float32 in shape \(7, 8\)"),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(sealed, name, array, why) -> None:
    np.save(sealed / f"{name}.npy", array)
    with pytest.raises(QuarryError, match=f"index 's': {why}.*Rebuild"):
        ClusterFile(sealed)


@pytest.mark.parametrize("name", ["seal", "rows", "checks_int8", "scale_int8"])
def test_an_array_that_is_not_there_is_named(sealed, name: str) -> None:
    (sealed / f"{name}.npy").unlink()
    with pytest.raises(QuarryError, match=f"(no {name}.npy|seal.npy).*Rebuild it with"):
        ClusterFile(sealed, "int8")


def test_an_empty_file_is_damage(sealed) -> None:
    (sealed / "rows.npy").write_bytes(b"")
    with pytest.raises(QuarryError, match="index 's': .*Rebuild"):
        ClusterFile(sealed)


def test_the_index_in_memory_is_verified_as_well(tmp_path, store) -> None:
    made = build(tmp_path / "c", passages_of(MOUNTAINS), store)
    flip(made.path / "centroids.npy", -1)
    with pytest.raises(QuarryError, match="index 'clustered': centroids, rows.*Rebuild"):
        open_index(made.path, encoder_dir("dense"))


def test_checksums_tell_clusters_with_the_same_bytes_at_other_rows_apart() -> None:
    codes = np.zeros((2, 4), dtype="f4")
    one, two = checksums(codes, np.array([0, 1]), np.array([0, 1, 2]))
    assert one != two
