"""What a fused run costs."""

from stages import tables
from stages.fuse.costs import add_costs

ROW = {
    "answer": "said", "memory": "m", "docids": ["d#0"], "rounds": 2, "llm_calls": 1,
    "searches": 1, "tokens_in": 10, "tokens_out": 3, "stop_reason": "fixed", "error": "",
}  # fmt: skip


def test_costs_add_up_question_by_question_and_nothing_is_answered():
    one = tables.table("answers", [{"qid": "q1"} | ROW, {"qid": "q2"} | ROW])
    other = tables.table("answers", [{"qid": "q1"} | ROW | {"tokens_in": 5, "llm_calls": 0}])
    q1, q2 = tables.sort_table(add_costs([one, other]), "answers").to_pylist()
    assert (q1["qid"], q1["tokens_in"], q1["tokens_out"]) == ("q1", 10 + 5, 3 + 3)
    assert (q1["llm_calls"], q1["searches"], q1["answer"]) == (1 + 0, 1 + 1, "")
    assert (q2["qid"], q2["tokens_in"], q2["docids"]) == ("q2", 10, [])
    tables.check_table(add_costs([one, other]), "answers", where="here")


def test_a_run_without_an_account_leaves_none():
    one = tables.table("answers", [{"qid": "q1"} | ROW])
    assert add_costs([one, tables.empty_table("answers")]).num_rows == 0
    assert add_costs([]).equals(tables.empty_table("answers"))
