"""A folder that can be served by itself: an OpenVINO graph with the tokenizer, template and config beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from penstock.core.errors import LoadError
from penstock.language.files import ModelFiles
from penstock.language.templates import DEFAULT, sources
from penstock.language.tokenizer import NativeTokenizer, open_tokenizer

_COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model", "chat_template.json", "chat_template.jinja",
    "additional_chat_templates",
)  # fmt: skip


def complete(files: ModelFiles, graph: Path, folder: Path) -> None:
    """Moves the graph's files from `graph` into `folder`, and writes what else serving needs. Raises: LoadError."""
    for path in graph.glob("openvino_*"):
        path.rename(folder / path.name)
    if files.kind == "huggingface":
        for name in _COPIED:
            source = files.path / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.exists():
                shutil.copyfile(source, folder / name)
        return
    _of_gguf(files, folder)


def _of_gguf(files: ModelFiles, folder: Path) -> None:
    words = open_tokenizer(files)
    if not isinstance(words, NativeTokenizer):
        raise LoadError(f"the tokenizer of {files.path.name} cannot be written as tokenizer.json")
    (folder / "tokenizer.json").write_text(words.as_json(), "utf-8")
    config: dict[str, object] = {"model_type": files.architecture, "architectures": ["GgufForCausalLM"]}
    if isinstance(longest := files.config.get(f"{files.architecture}.context_length"), int):
        config["max_position_embeddings"] = longest
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"eos_token_id": sorted(words.end_ids)})
    ends = (("bos", words.bos), ("eos", words.eos))
    named: dict[str, object] = {f"{kind}_token": words.token(token) for kind, token in ends if token is not None}
    _write(folder / "tokenizer_config.json", named)
    templates = sources(files)
    for name, text in templates.items():
        path = folder / "chat_template.jinja"
        if name != DEFAULT:
            path = folder / "additional_chat_templates" / f"{Path(name).name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
