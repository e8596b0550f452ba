"""What a fused run costs: the sum of what its runs cost, question by question."""

from collections.abc import Sequence

import pyarrow as pa

from stages.tables import TABLES

COUNTS = ("llm_calls", "searches", "tokens_in", "tokens_out")
FUSED = "fused"  # the stop_reason of these rows: nobody answered


def add_costs(answers: Sequence[pa.Table]) -> pa.Table:
    """One row per question asked in any run: no answer, and the sums of calls and tokens.

    Nothing if one of the runs kept no account: a sum without it would be too small.
    """
    schema = TABLES["answers"].schema
    if not all(t.num_rows for t in answers):
        return schema.empty_table()
    rows = pa.concat_tables([schema.empty_table(), *answers]).select(["qid", *COUNTS])
    total = rows.group_by("qid").aggregate([(c, "sum") for c in COUNTS]).to_pydict()
    n = len(total["qid"])
    blank = {"answer": [""] * n, "memory": [""] * n, "docids": [[]] * n, "error": [""] * n}
    sums = {c: total[f"{c}_sum"] for c in COUNTS}
    columns = blank | sums | {"qid": total["qid"], "rounds": [1] * n, "stop_reason": [FUSED] * n}
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
