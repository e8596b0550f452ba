"""A tree of continuations reads as each of them does alone."""

import numpy as np
import pytest
import torch
from language_models import reference, tiny_lm

from stages.errors import Refused
from stages.lm import open_generator
from stages.prefixes import Ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lm(tmp_path_factory.mktemp("tiny"), context=256)


def alone(folder, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities (t, v), last hidden states (t, d)) by transformers, one text at a time."""
    model, tokenizer = reference(folder)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(text)])
        out = model(ids, output_hidden_states=True)
    return out.logits[0].log_softmax(-1).numpy(), out.hidden_states[-1][0].numpy()


def test_a_tree_reads_as_each_text_alone(folder) -> None:
    """Two prompts with a long common beginning; forks, several tokens at once, a second level."""
    generator = open_generator(folder)
    reader = generator.reads_prefixes()
    _, tokenizer = reference(folder)
    ids = tokenizer.encode
    header = "Forty letters that both of them begin with: "
    texts = [header + "why", header + "who is it"]
    prompts = reader.open(texts, room=20)
    first = [
        Ask(prompts[0], (), ids("ab")), Ask(prompts[1], (), ids("x")),
        Ask(prompts[0], (), ids("cde")),
    ]  # fmt: skip
    reads = reader.read(first)
    scratch = reader.read([Ask(prompts[0], reads[0].path, ids("zzzz"))], keep=False)
    second = [Ask(prompts[0], reads[2].path, ids("fg")), Ask(prompts[0], reads[0].path, ids("hi"))]
    reads += reader.read(second)
    wholes = ["why" + "ab", "who is it" + "x", "why" + "cde", "why" + "cdefg", "why" + "abhi"]
    for text, read, ask in zip(wholes, reads, [*first, *second], strict=True):
        logps, hidden = alone(folder, header + text)
        t = len(ask.tokens)
        np.testing.assert_allclose(read.logps, logps[-1], atol=1e-4)
        np.testing.assert_allclose(read.hidden, hidden[-t:], atol=1e-4)
        at = np.arange(len(logps) - t, len(logps) - 1)
        np.testing.assert_allclose(read.own, logps[at, list(ask.tokens[1:])], atol=1e-4)
    for prompt, text in zip(prompts, texts, strict=True):
        np.testing.assert_allclose(prompt.logps, alone(folder, text)[0][-1], atol=1e-4)
    logps, _ = alone(folder, header + "whyabzzzz")
    np.testing.assert_allclose(scratch[0].logps, logps[-1], atol=1e-4)


def test_what_prompts_share_is_read_once(folder) -> None:
    generator = open_generator(folder)
    reader = generator.reads_prefixes()
    header = "Forty letters that all of them begin with: "
    reader.open([header + c for c in "abcdefgh"], room=4)
    assert reader.tokens == len(header) + 8
    reader.open([header + "z"], room=4)
    assert reader.tokens == len(header) + 9, "also from one call to the next"


def test_a_prompt_without_room_for_its_tree_is_refused(folder) -> None:
    reader = open_generator(folder).reads_prefixes()
    assert len(reader.open(["x" * 200], room=56)) == 1
    with pytest.raises(Refused, match="200 tokens and 57 may follow; the model's context has 256"):
        reader.open(["x" * 200], room=57)
    assert reader.open([], room=1) == []
