"""Which questions: those of a split, or all of them."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import QuarryError

ALL = "all"  # every question, also one of no split


def of_split(queries: pa.Table, split: str) -> pa.Table:
    """The rows of a split, in order. A corpus without questions has none in any split.

    Raises:
        QuarryError: there are questions, but no split of that name.
    """
    if split == ALL:
        return queries
    rows = queries.filter(pc.equal(queries["split"], split))
    if queries.num_rows and not rows.num_rows:
        counts = sorted(Counter(queries["split"].to_pylist()).items())
        there = ", ".join(f"{name or '(no split)'} {n}" for name, n in counts)
        raise QuarryError(
            f"split '{split}': the corpus has no such questions. Questions by split: {there}; "
            f"together: {ALL} {queries.num_rows}. Correct split in params.yaml."
        )
    return rows
