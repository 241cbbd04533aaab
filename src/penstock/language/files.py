"""What of a language model lies at a path: a GGUF file, a Hugging Face, OpenVINO or sentence-transformers folder, or
the description of an upstream. Names and headers are looked at; no framework is imported and no code is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from penstock.core.errors import InvalidInput
from penstock.language import gguf

FileKind = Literal["gguf", "huggingface", "openvino", "sentence", "upstream", "echo"]
Task = Literal["generate", "embed", "rank", "classify"]

UPSTREAM_SUFFIX = ".upstream.toml"  # describes servers elsewhere: engine `remote`
ECHO_SUFFIX = ".llmecho"  # an empty file: engine `echo`, which needs no weights
_MOST_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What lies at a path, found without a framework. `config` is config.json, or the GGUF header's values."""

    path: Path  # a .gguf or upstream file, or a folder
    kind: FileKind
    task: Task
    architecture: str = ""  # "llama", "qwen2", …
    config: Mapping[str, object] = field(default_factory=dict)


def recognises(path: Path) -> bool:
    """Whether a language model lies at `path`, by names and the first bytes."""
    if path.name.endswith((UPSTREAM_SUFFIX, ECHO_SUFFIX)):
        return path.is_file()
    if path.suffix == ".gguf" and path.is_file():
        with path.open("rb") as file:
            return file.read(4) == gguf.MAGIC
    return path.is_dir() and _folder_kind(path) is not None


def look(path: Path) -> ModelFiles:
    """What lies at `path`. Raises: InvalidInput when it is no language model, or its header or config is unreadable."""
    if path.name.endswith(ECHO_SUFFIX):
        return ModelFiles(path, "echo", "generate", "echo")
    if path.name.endswith(UPSTREAM_SUFFIX):
        return ModelFiles(path, "upstream", "generate", "upstream")
    if path.suffix == ".gguf":
        header = gguf.read_header(path)
        return ModelFiles(path, "gguf", _gguf_task(header), header.architecture, header.values)
    kind = _folder_kind(path) if path.is_dir() else None
    if kind is None:
        raise InvalidInput(
            f"{path} is no language model: it takes a .gguf file, a Hugging Face folder (config.json, weights, "
            f"tokenizer), an OpenVINO folder (openvino_model.xml), or a NAME{UPSTREAM_SUFFIX}"
        )
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    return ModelFiles(path, kind, _task(kind, config), str(config.get("model_type", "")), config)


def read_json(path: Path) -> Mapping[str, object]:
    """The object in a JSON file. Raises: InvalidInput."""
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise InvalidInput(f"{path.name} is larger than {_MOST_CONFIG_BYTES >> 20} MiB")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name} holds no JSON object")
    return found


def _folder_kind(path: Path) -> FileKind | None:
    if (path / "openvino_model.xml").exists() and (path / "openvino_model.bin").exists():
        return "openvino" if (path / "tokenizer.json").exists() or any(path.glob("openvino_tokenizer.xml")) else None
    if not (path / "config.json").exists() or not any(path.glob("*.safetensors")):
        return None
    if (path / "modules.json").exists():
        return "sentence"
    has_tokenizer = any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return "huggingface" if has_tokenizer else None


def _task(kind: FileKind, config: Mapping[str, object]) -> Task:
    if kind == "sentence":
        return "embed"
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture.endswith("ForSequenceClassification"):
        labels = config.get("id2label")
        return "rank" if not isinstance(labels, dict) or len(labels) == 1 else "classify"
    if architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")):
        return "generate"
    return "embed"


def _gguf_task(header: gguf.Header) -> Task:
    pooling = header.own("pooling_type")
    if pooling == 4:  # LLAMA_POOLING_TYPE_RANK of llama.h
        return "rank"
    encoder = header.own("attention.causal") is False or header.architecture in ("bert", "nomic-bert", "jina-bert-v2")
    return "embed" if encoder or pooling in (1, 2, 3) else "generate"
