"""What the kinds with an inverted file share: whose centroids, which list, faiss over the lists."""

from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from stages.clusters import Floats, Ints
from stages.errors import QuarryError
from stages.index.embedding import Embedded
from stages.index.layout import read_index


def read_centroids(path: Path, made: Embedded, corpus: str) -> Floats:
    """The centroids in an index directory, which the encoder of these passages must have made.

    Raises:
        QuarryError: it is of another kind, its encoder is another, or there are none for the
            passages of ``corpus``.
    """
    index, encoder = read_index(path), made.encoder
    if index.kind != "centroids":
        raise QuarryError(
            f"index '{path.name}' is of kind {index.kind}; centroids are needed here. "
            f"Name an entry of kind centroids."
        )
    if index.encoder["fingerprint"] != encoder["fingerprint"]:
        raise QuarryError(
            f"index '{path.name}' was built with {index.encoder['name']} (max_tokens "
            f"{index.encoder['max_tokens']}); the encoder is {encoder['name']} (max_tokens "
            f"{encoder['max_tokens']}, other fingerprint). Give both entries the same model "
            f"and values."
        )
    centroids = np.asarray(index.arrays["centroids"])
    if made.docids and not len(centroids):
        raise QuarryError(
            f"index '{path.name}' holds no centroids: its corpus is empty, and the corpus "
            f"'{corpus}' is not. Name a corpus with passages in its entry."
        )
    return centroids


def assign(vectors: Floats, centroids: Floats, *, threads: int = 1) -> npt.NDArray[np.int32]:
    """(n,) the nearest centroid of each vector, by inner product."""
    faiss.omp_set_num_threads(threads)
    if not len(vectors):
        return np.empty(0, dtype=np.int32)
    _, nearest = faiss.knn(vectors, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return nearest[:, 0].astype(np.int32)


def inverted_file(
    vectors: Floats, centroids: Floats, lists: npt.NDArray[np.int32], rows: Ints | None = None
) -> faiss.IndexIVFFlat:
    """faiss's index over lists that are known already: a copy, no search for the nearest.

    ``rows`` (n,) are what the vectors are called in results; none: their places.
    """
    d = vectors.shape[1]
    quantizer = faiss.IndexFlatIP(d)
    quantizer.add(centroids)
    ivf = faiss.IndexIVFFlat(quantizer, d, len(centroids), faiss.METRIC_INNER_PRODUCT)
    ivf.is_trained = True
    vectors, lists = np.ascontiguousarray(vectors), lists.astype(np.int64)
    ids = None if rows is None else faiss.swig_ptr(np.ascontiguousarray(rows))
    ivf.add_core(len(vectors), faiss.swig_ptr(vectors), ids, faiss.swig_ptr(lists))
    return ivf
