"""The value head and what it learns from: prefixes by hand, states read once, equal bytes."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from index_worlds import passages_of
from language_models import reference, tiny_lm

from stages import checkpoint
from stages.digest import folder_digest
from stages.errors import QuarryError
from stages.finetune import Inputs, value
from stages.index import Inputs as IndexInputs
from stages.index import layout, open_index, suffixes
from stages.lm import open_generator
from stages.models import write_training
from stages.pairs import Inputs as PairInputs
from stages.pairs import paths
from stages.preference import read_groups
from stages.records import RecordStore
from stages.tables import read_table, table, write_table
from stages.tools import Tools
from stages.value import Head, ValueHead, fresh_head
from stages.walks import passage_text, walk_prompt

TEXTS = {
    "aida#0": ("Aida", "It is an opera. It was composed by Verdi."),
    "aide#0": ("Aide", "It is a helper. It is not sung."),
    "rhine#0": ("Rhine", "A river to the sea."),
    "seine#0": ("Seine", "A river to the sea."),
}
ASKED = {
    "q1": ("Who composed Aida?", ["Verdi"], "aida"),
    "q2": ("What is Aide?", ["helper"], "aide"),
}


def queries_of(asked=ASKED, splits=("train", "dev")):
    rows = [
        dict(qid=q, text=text, split=split, answers=answers, options=None, meta="{}")
        for split in splits
        for q, (text, answers, _) in asked.items()
    ]
    for row in rows:
        row["qid"] = f"{row['split']}-{row['qid']}"
    qrels = [dict(qid=r["qid"], docid=asked[r["qid"].split("-")[1]][2], rel=1) for r in rows]
    return table("queries", rows), table("qrels", qrels)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("value")
    model = tiny_lm(folder / "tiny")
    slots = dict(kind="suffixes", corpus="c", model="tiny", centroids="none", triples="none")
    made = suffixes.build(passages_of(TEXTS), suffixes.Params(**slots), IndexInputs(None, model))
    (folder / "index").mkdir()
    layout.write_index(folder / "index", "suffixes", made)
    tools = Tools(open_generator(model), open_index(folder / "index"))
    return SimpleNamespace(folder=folder, model=model, tools=tools)


def paired(world, run: Path | None = None, **values) -> paths.Built:
    slots = dict(recipe="paths", corpus="c", index="i", encoder="none", model="tiny", seed=13)
    params = paths.Params(**slots, **{"granularity": 4, "depth": 8, "max_occ": 2, **values})
    queries, qrels = queries_of()
    inputs = PairInputs(queries, passages_of(TEXTS), qrels, None, run)
    return paths.build(params, inputs, world.tools, None)


def labels_of(built: paths.Built) -> list[tuple[str, str, int]]:
    """(query, prefix, label), and the tables are what training accepts."""
    assert read_groups(built.groups, built.candidates)
    prompt = {g["group_id"]: (g["prompt"], g["qid"]) for g in built.groups.to_pylist()}
    return [(*prompt[c["group_id"]], c["text"], c["label"]) for c in built.candidates.to_pylist()]


def test_positives_run_into_a_relevant_passage_and_negatives_leave_it(world) -> None:
    """Levels 1, 2, 4, 8 of four bytes. " Aid" is in both; " Aida. It" is where they part."""
    built = paired(world)
    mine = [(text, label) for _, qid, text, label in labels_of(built) if qid == "train-q1"]
    begins = [passage_text(*TEXTS["aida#0"])[:n] for n in (8, 16, 32)]
    assert {t for t, label in mine if label > 0} >= set(begins)
    answer = " It was composed by Verdi."
    assert answer in {t for t, label in mine if label > 0}, "from the sentence with the answer, too"
    siblings = [passage_text(*TEXTS["aide#0"])[:n] for n in (8, 16, 32)]
    assert {t for t, label in mine if label < 0} >= set(siblings)
    whole = [passage_text(*text) for text in TEXTS.values()]
    for text, label in mine:
        holders = [w for w in whole if text in w]
        assert holders and (whole[0] in holders) == (label > 0) and len(holders) <= 2
    assert (" Aid", 1) in mine and (" Aid", -1) not in mine, "from here both can be reached"


def test_tokens_are_kept_as_the_index_has_them(world) -> None:
    built = paired(world)
    decode = world.tools.generator.reads_prefixes().decode
    texts = {c["cand_id"]: c["text"] for c in built.candidates.to_pylist()}
    for group in built.groups.to_pylist():
        for cand_id, ids in json.loads(group["meta"])["tokens"].items():
            assert decode(ids) == texts[cand_id]
            left, right = world.tools.retriever.find(ids)
            assert 0 < right - left <= 2, "it occurs, and says of which passage"


def test_a_runs_searches_become_samples_of_their_sub_queries(world, tmp_path) -> None:
    rows = [
        dict(qid="train-q1", effect_no=n, turn=n, kind="Search", key="k", tokens_in=0, tokens_out=0,
             request=json.dumps({"query": query, "k": 3, "unit": unit}),
             result=json.dumps([[d, 1.0] for d in found]))
        for n, (query, unit, found) in enumerate([
            ("Who wrote it?", "passage", ["rhine#0", "aida#0"]),
            ("Who wrote it?", "document", ["x"]),
            ("Only wrong?", "passage", ["rhine#0"]),
        ])
    ]  # fmt: skip
    write_table(table("effects", rows), tmp_path, "effects")
    built = paired(world, tmp_path, round=1)
    policy = [g for g in built.groups.to_pylist() if g["kind"] == "policy"]
    assert [(g["prompt"], g["iteration"]) for g in policy] == [("Who wrote it?", 1)]
    mine = [(t, label) for q, _, t, label in labels_of(built) if q == "Who wrote it?"]
    assert (passage_text(*TEXTS["aida#0"])[:32], 1) in mine
    assert {t[:4] for t, label in mine if label < 0} == {" Rhi"}


def test_what_paths_cannot_use_is_refused(world) -> None:
    slots = dict(recipe="paths", corpus="c", index="i", encoder="none", model="tiny", seed=13)
    queries, qrels = queries_of()
    inputs = PairInputs(queries, passages_of(TEXTS), qrels)
    with pytest.raises(QuarryError, match="needs an index of kind suffixes and a generator"):
        paths.build(paths.Params(**slots), inputs, Tools(None, world.tools.retriever), None)
    none = PairInputs(queries, passages_of(TEXTS), qrels.slice(0, 0))
    with pytest.raises(QuarryError, match="no question of split train .* has a relevant passage"):
        paths.build(paths.Params(**slots), none, world.tools, None)


def test_marks_and_readings_by_hand() -> None:
    assert paths.marks(30, 4, 8) == [4, 8, 16, 30] and paths.marks(100, 4, 8) == [4, 8, 16, 32]
    assert paths.marks(3, 4, 8) == [3] and paths.marks(0, 4, 8) == []
    assert value.whole_readings([(1,), (1, 2), (1, 2, 3), (1, 4), (2,), (1, 4)]) == [
        (1, 2, 3), (1, 4), (2,)
    ]  # fmt: skip


def test_a_value_by_hand() -> None:
    """V = sigmoid(w2 · gelu(W1 h)), h = (3 - 1) / 2, gelu(1) = .841345, gelu(-1) = -.158655."""
    head = Head(1, 2)
    with torch.no_grad():
        head.w1.copy_(torch.tensor([[1.0], [-1.0]]))
        head.w2.copy_(torch.tensor([2.0, 1.0]))
        head.mean.fill_(1.0)
        head.deviation.fill_(2.0)
        v = head(torch.tensor([[3.0]])).sigmoid().item()
    assert v == pytest.approx(1 / (1 + np.exp(-(2 * 0.841345 - 0.158655))), abs=1e-5)
    assert fresh_head(8, 4, seed=1).w1.equal(fresh_head(8, 4, seed=1).w1)
    assert not fresh_head(8, 4, seed=1).w1.equal(fresh_head(8, 4, seed=2).w1)


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Records and checkpoints of the test's own."""
    monkeypatch.setattr(value, "RecordStore", functools.partial(RecordStore, tmp_path / "records"))
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path


def trained(world, kept: Path, name: str, pairs: Path, **values) -> tuple[Path, dict]:
    slots = dict(recipe="value", corpus="none", pairs="p", index="none", encoder="none", model="m")
    params = value.Params(**slots, **{"seed": 13, "hidden": 16, "lr": 0.01, **values})
    out = kept / name
    out.mkdir()
    return out, value.train(params, Inputs(pairs=pairs, model=world.model), out)


def pairs_dir(world, folder: Path) -> Path:
    built = paired(world)
    folder.mkdir()
    write_table(built.groups, folder, "pref_groups")
    write_table(built.candidates, folder, "pref_candidates")
    return folder


def test_states_are_those_of_each_prefix_read_alone(world, kept) -> None:
    pairs = pairs_dir(world, kept / "pairs")
    with RecordStore(kept / "r") as store:
        learn, dev = value.read_samples(world.tools.generator, pairs, store)
        again, _ = value.read_samples(world.tools.generator, pairs, store)
    assert (again.states == learn.states).all() and len(dev.labels) == len(learn.labels)
    model, tokenizer = reference(world.model)
    rows = iter(zip(learn.states, learn.likelihood, learn.labels, strict=True))
    labels = {(q, t): label for q, _, t, label in labels_of(paired(world))}
    decode = world.tools.generator.reads_prefixes().decode
    for group in [g for g in read_table(pairs, "pref_groups").to_pylist() if g["split"] == "train"]:
        for ids in json.loads(group["meta"])["tokens"].values():
            state, likelihood, label = next(rows)
            prompt = tokenizer.encode(walk_prompt(group["prompt"]))
            with torch.no_grad():
                out = model(torch.tensor([prompt + ids]), output_hidden_states=True)
            np.testing.assert_allclose(state, out.hidden_states[-1][0, -1], atol=1e-4)
            logps = out.logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            mean = logps.gather(1, torch.tensor(ids)[:, None]).mean().item()
            assert likelihood == pytest.approx(mean, abs=1e-4)
            assert label == (labels[group["prompt"], decode(ids)] > 0)
    assert next(rows, None) is None


def test_training_learns_repeats_and_goes_on_after_a_kill(world, kept, monkeypatch) -> None:
    pairs = pairs_dir(world, kept / "pairs")
    out, facts = trained(world, kept, "a", pairs, epochs=40, batch=8)
    dev = json.loads((out / "training.json").read_text())["made_by"]["dev"]
    assert dev["trained"]["auc"] > max(0.9, dev["untrained"]["auc"]) and dev["trained"]["interval"]
    assert dev["likelihood"]["questions"] == dev["trained"]["questions"] == 2
    again, _ = trained(world, kept, "b", pairs, epochs=40, batch=8)
    assert folder_digest(again) == folder_digest(out)
    assert not list((kept / "checkpoints").glob("*")), "removed when it is done"

    class Killed(Exception):
        pass

    save, n = checkpoint.save, []

    def save_and_die(*args) -> None:
        save(*args)
        n.append(1)
        if len(n) == 1:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        trained(world, kept, "c", pairs, epochs=40, batch=8)
    resumed, rest = trained(world, kept, "d", pairs, epochs=40, batch=8)
    assert folder_digest(resumed) == folder_digest(out)
    assert 0 < rest["trained_steps"] == facts["trained_steps"] - value.SAVE_EVERY


def test_a_head_opens_as_it_was_trained_and_names_its_generator(world, kept) -> None:
    out, _ = trained(world, kept, "a", pairs_dir(world, kept / "pairs"))
    head = ValueHead(out)
    assert head.generator == world.tools.generator.fingerprint
    values = head.predict(np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32))
    assert values.shape == (5,) and ((values > 0) & (values < 1)).all() and len(set(values)) == 5


def test_what_a_head_cannot_be_trained_on_is_refused(world, kept) -> None:
    server = kept / "server"
    server.mkdir()
    (server / "endpoint.json").write_text(
        json.dumps({"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": ""})
    )
    write_training(server, "generator", recipe="server")
    other = SimpleNamespace(model=server)
    with pytest.raises(
        QuarryError, match="a value head reads hidden states, which only a generator"
    ):
        trained(other, kept, "a", pairs_dir(world, kept / "pairs"))
    groups = paired(world).groups.to_pylist()
    foreign = [g | {"meta": "{}"} for g in groups]
    write_table(table("pref_groups", foreign), kept / "pairs", "pref_groups")
    with pytest.raises(
        QuarryError, match="not prefixes of recipe paths in the generator's own tok"
    ):
        trained(world, kept, "b", kept / "pairs")
