"""What a Hugging Face folder says of how its model generates: generation_config.json, else config.json."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.language.files import ModelFiles, read_json

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_generation_config(files: ModelFiles) -> Mapping[str, object]:
    """The object in generation_config.json; empty where there is none. Raises: InvalidInput."""
    path = files.path / "generation_config.json"
    return read_json(path) if files.path.is_dir() and path.exists() else {}


def end_ids(files: ModelFiles) -> tuple[int, ...]:
    """Ids that end a text, in the order they are listed."""
    said = read_generation_config(files).get("eos_token_id", files.config.get("eos_token_id"))
    listed = said if isinstance(said, list) else [said]
    return tuple(dict.fromkeys(index for index in listed if isinstance(index, int) and not isinstance(index, bool)))


def sampling_defaults(files: ModelFiles) -> Mapping[str, float]:
    """Values of sampling that the model's makers recommend, by the names of `core.language.Sampling`."""
    said = read_generation_config(files)
    found: dict[str, float] = {}
    for name in _DEFAULTS:
        value = said.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = value
    return found
