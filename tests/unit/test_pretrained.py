"""Models from elsewhere: what is taken, what never is, and what is said when it is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml
from language_models import ROOT, smollm2, tiny_lm
from safetensors.numpy import load_file

from stages import params
from stages.digest import file_digest, folder_digest
from stages.errors import QuarryError
from stages.finetune import RECIPES, Inputs, pretrained
from stages.finetune.__main__ import make
from stages.finetune.pretrained import Params, train
from stages.lm import open_generator
from stages.models import TRAINING, read_training
from stages.shell import Task
from stages.types import Request

SLOTS = dict.fromkeys(Inputs._fields, "none")


def values(source: object, role: str = "generator") -> Params:
    return Params(recipe="pretrained", role=role, source=source, **SLOTS)


def made(source: object, out: Path, role: str = "generator") -> Path:
    out.mkdir()
    train(values(source, role), Inputs(), out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


def test_from_a_directory_come_weights_tokenizer_and_configuration_and_no_pickles(
    folder, tmp_path
) -> None:
    for name in ("heads.pt", "pytorch_model.bin", "optimizer.pkl", "README.md", "modeling.py"):
        (folder / name).write_bytes(b"not to be taken")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    out = made(f"dir:{folder}", tmp_path / "out", role="dense")
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "1_Pooling/config.json", TRAINING,
    }  # fmt: skip
    assert read_training(out, "dense")["made_by"]["source"] == f"dir:{folder}"
    assert file_digest(out / "model.safetensors") == file_digest(folder / "model.safetensors")


def test_what_is_made_is_a_generator_and_equal_sources_make_equal_bytes(folder, tmp_path) -> None:
    one = made(f"dir:{folder}", tmp_path / "one")
    two = made(f"dir:{folder}", tmp_path / "two")
    assert folder_digest(one) == folder_digest(two)
    request = [Request("hello", 12)]
    assert open_generator(one).generate(request) == open_generator(folder).generate(request)


def tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a GGUF with random weights of one layer; its tensors by name."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, "ab", "<|end|>"]
    width, heads, inner = 32, 2, 64
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(width)
    w.add_feed_forward_length(inner)
    w.add_head_count(heads)
    w.add_head_count_kv(heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    w.add_token_merges(["a b"])
    w.add_eos_token_id(len(tokens) - 1)
    w.add_bos_token_id(len(tokens) - 1)
    w.add_unk_token_id(len(tokens) - 1)
    w.add_add_bos_token(False)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,),
        "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width), "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner),
    }  # fmt: skip
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for name, tensor in tensors.items():
        w.add_tensor(f"{name}.weight", tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return tensors


def test_a_gguf_becomes_float32_safetensors_that_generate(tmp_path) -> None:
    tensors = tiny_gguf(tmp_path / "tiny.gguf")
    one = made(f"dir:{tmp_path / 'tiny.gguf'}", tmp_path / "one")
    two = made(f"dir:{tmp_path / 'tiny.gguf'}", tmp_path / "two")
    assert folder_digest(one) == folder_digest(two), "equal inputs, equal bytes"
    weights = load_file(one / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"float32"}
    assert np.array_equal(weights["model.embed_tokens.weight"], tensors["token_embd"])
    assert np.array_equal(weights["model.layers.0.mlp.down_proj.weight"], tensors["blk.0.ffn_down"])
    assert "quantization_config" not in json.loads((one / "config.json").read_text())
    assert os.stat(one / "model.safetensors").st_mode & 0o044, "others may read it"
    generator = open_generator(one)
    assert generator.count_tokens(["abba"]) == [3], "the file's merges are the tokenizer's"
    assert generator.generate([Request("abba", 5)])[0].tokens_out >= 1
    assert read_training(one, "generator")["made_by"]["gguf"] == file_digest(tmp_path / "tiny.gguf")


def test_the_real_generator_is_the_file_that_the_package_ships() -> None:
    made_by = read_training(smollm2(), "generator")["made_by"]
    from language_models import gguf as real

    assert made_by["gguf"] == file_digest(real())


def test_an_endpoint_is_a_directory_that_names_the_keys_variable_and_not_the_key(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-value")
    source = {"base_url": "http://127.0.0.1:8080/v1", "model": "m", "api_key_env": "MY_KEY"}
    out = made(source, tmp_path / "out")
    assert json.loads((out / "endpoint.json").read_text()) == source
    assert {p.name for p in out.iterdir()} == {"endpoint.json", TRAINING}
    assert all("secret-value" not in p.read_text() for p in out.iterdir())
    with pytest.raises(QuarryError, match="a server can be a generator, not a dense model"):
        made(source, tmp_path / "dense", role="dense")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smollm", "package:<name>/<path>, dir:<path>"),
        ("dir:", "package:<name>/<path>, dir:<path>"),
        ("dir:/no/such", "/no/such is neither a model directory nor a .gguf file"),
        ("package:no_such_package/model", "package 'no_such_package' is not installed.*make setup"),
        ("hub:no-such-owner/no-such-model", "hub model 'no-such-owner/no-such-model'.*HF_HUB_OFF"),
        ("hub:not a name", "hub model 'not a name' could not be had"),
    ],
)
def test_a_source_that_is_not_there_is_named_with_what_to_do(
    tmp_path, monkeypatch, source: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(QuarryError, match=message):
        made(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", r"no \*.safetensors. Pickled weights are never opened"),
    ],
)
def test_a_directory_that_is_no_model_is_named_with_what_it_lacks(
    folder, tmp_path, missing: str, message: str
) -> None:
    source = made(f"dir:{folder}", tmp_path / "source")
    (source / missing).unlink()
    (source / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(QuarryError, match=message):
        made(f"dir:{source}", tmp_path / "out")


def test_a_hub_model_comes_from_the_hubs_cache_when_it_is_there(
    folder, tmp_path, monkeypatch
) -> None:
    repo = tmp_path / "cache" / "models--who--what"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    (repo / "snapshots" / "abc123").symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    out = made("hub:who/what", tmp_path / "out")
    assert file_digest(out / "model.safetensors") == file_digest(folder / "model.safetensors")


def write_params(entry: dict) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"finetune": {"mine": entry}}))


def test_the_shell_makes_an_entry_and_names_every_bad_value(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"recipe": "pretrained", "role": "generator", "from": f"dir:{folder}", **SLOTS}
    write_params(entry)
    Path("out").mkdir()
    assert make(Task("finetune", "mine", study=False), Path("out")) == {}
    assert read_training(Path("out"), "generator")
    server = {"base_url": "127.0.0.1", "model": "m", "api_key_env": "sk-not-a-name"}
    write_params({**entry, "from": server, "rol": "x", "corpus": "semanlink"})
    with pytest.raises(QuarryError) as e:
        params.load(Params, "finetune", "mine")
    for part in ("base_url", "api_key_env", "rol: unknown key. Did you mean 'role'", "corpus"):
        assert part in str(e.value)


def test_every_recipe_has_its_file_with_train_and_params() -> None:
    folder = Path(pretrained.__file__).parent
    for module in RECIPES.values():
        text = (folder / f"{module}.py").read_text()
        assert "\ndef train(params: Params, inputs: Inputs, out: Path)" in text
        assert "\nclass Params(Entry):" in text


def test_the_command_line_says_what_is_wrong_and_writes_nothing(tmp_path) -> None:
    (tmp_path / "params.yaml").write_text("finetune:\n  mine: {recipe: pretraned}\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.finetune", "mine"], cwd=tmp_path,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "finetune.mine.recipe is 'pretraned'. Did you mean 'pretrained'?" in done.stderr
    assert not (tmp_path / "data" / "finetune" / "mine").exists()
