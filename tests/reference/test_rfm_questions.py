"""How many real questions the rules of RFM-RAG's reading know: what docs/methods.md says."""

import json
from pathlib import Path

import pytest

from stages.serve.strategies.rfm_rag_questions import read_question

QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "hotpotqa" / "dev200.jsonl"


def test_of_two_hundred_questions_of_hotpotqa_seven_have_a_known_form() -> None:
    if not QUESTIONS.exists():
        pytest.skip("the shared collection hotpotqa is not beside this checkout")
    questions = [json.loads(line)["question"] for line in QUESTIONS.open(encoding="utf-8")]
    read = [q for q in questions if read_question(q).triples]
    assert (len(read), len(questions)) == (7, 200)
    assert "Who was born earlier, Simone Bolelli or Caroline Wozniacki?" in read
