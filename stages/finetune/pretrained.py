"""A model as it comes: from an installed package, a local directory, a hub, or a server.

The entry's ``from`` says where:

    package:<name>/<inner path>   a GGUF file or a model directory inside an installed package
    dir:<path>                    the same on this machine
    hub:<owner/name[@revision]>   a model on the hub, when one can be reached
    {base_url, model, api_key_env}  an OpenAI-compatible server (vLLM, SGLang, llama.cpp)

From a directory only configuration, safetensors, tokenizer and pooling files are taken, never
pickles. A GGUF file is dequantised to float32 once, here (about 40 s for 135M parameters);
what this writes then loads in under a second.

DVC watches the packages' versions, not what a directory or a hub holds: where that changed, run
``dvc repro --force`` on the entry.
"""

import json
import shutil
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from stages.digest import file_digest
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.models import ModelRole, package_path, write_training
from stages.params import Entry

# What makes a model directory of transformers or sentence-transformers, and nothing else.
KEEP = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "chat_template.jinja",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "*_Pooling/config.json", "*_Dense/config.json", "*_Dense/*.safetensors",
)  # fmt: skip


class Endpoint(Entry):
    """An OpenAI-compatible server."""

    base_url: str = Field(pattern=r"^https?://")  # up to and with /v1
    model: str = Field(min_length=1)  # the server's name for it
    api_key_env: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$")  # a variable's name, no key


class Params(Entry):
    """Values of a ``pretrained`` entry."""

    model_config = ConfigDict(populate_by_name=True)

    recipe: Literal["pretrained"]
    role: ModelRole  # what it may be used as
    source: str | Endpoint = Field(alias="from")  # see the file's docstring
    corpus: Literal["none"]
    pairs: Literal["none"]
    index: Literal["none"]
    encoder: Literal["none"]
    model: Literal["none"]


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the model that ``params.source`` names; nothing is trained.

    Raises:
        QuarryError: the source is malformed or not there, or holds no model.
    """
    if isinstance(params.source, Endpoint):
        return _endpoint(params.source, params.role, out)
    kind, _, spec = params.source.partition(":")
    if kind == "package" and spec:
        found = package_path(spec)
    elif kind == "dir" and spec:
        found = Path(spec).expanduser()
    elif kind == "hub" and spec:
        found = _download(spec)
    else:
        raise QuarryError(
            f"finetune: from is {params.source!r}. Write package:<name>/<path>, dir:<path>, "
            f"hub:<owner/name>, or base_url and model of a server."
        )
    if found.is_dir():
        made_by = {"files": _copy(found, out)}
    elif found.suffix == ".gguf":
        made_by = {"gguf": file_digest(found)}
        _dequantise(found, out)
    else:
        raise QuarryError(
            f"finetune: {found} is neither a model directory nor a .gguf file. "
            f"Correct 'from' in params.yaml."
        )
    write_training(out, params.role, recipe=params.recipe, source=params.source, **made_by)
    return {}


def _endpoint(source: Endpoint, role: ModelRole, out: Path) -> dict[str, float]:
    if role != "generator":
        raise QuarryError(f"finetune: a server can be a generator, not a {role} model.")
    text = json.dumps(source.model_dump(), indent=2, sort_keys=True) + "\n"
    (out / "endpoint.json").write_text(text, encoding="utf-8")
    write_training(out, role, recipe="pretrained", source=source.model_dump())
    return {}


def _download(spec: str) -> Path:
    """The hub's snapshot of ``owner/name[@revision]``, from its local cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = spec.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(KEEP)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise QuarryError(
            f"finetune: hub model '{spec}' could not be had ({type(e).__name__}). Check the "
            f"name, unset HF_HUB_OFFLINE if a hub can be reached, or use dir:<path>."
        ) from e


def _copy(source: Path, out: Path) -> int:
    """Copy the files that make a model; how many.

    Raises:
        QuarryError: configuration, weights as safetensors, or tokenizer.json are not there.
    """
    files = sorted({p for pattern in KEEP for p in source.glob(pattern) if p.is_file()})
    have = {p.relative_to(source).as_posix() for p in files}
    for needed in ("config.json", "tokenizer.json"):
        if needed not in have:
            raise QuarryError(f"finetune: {source} has no {needed}; it is not a model directory.")
    if not any(name.endswith(".safetensors") for name in have):
        raise QuarryError(
            f"finetune: {source} has no *.safetensors. Pickled weights are never opened: "
            f"convert them first with save_pretrained."
        )
    for path in files:
        target = out / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return len(files)


def _dequantise(gguf: Path, out: Path) -> None:
    """Write a GGUF model as a float32 model directory.

    transformers dequantises while loading, but the object it returns cannot be saved: it says
    it is quantised. Its weights go into a fresh model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone; the cache may be shared
