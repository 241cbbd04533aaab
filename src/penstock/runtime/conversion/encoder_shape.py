"""What the files of an encoder say of it: a model that embeds, ranks or classifies whole texts.

Families: BERT and what differs from it in little. What would come out wrong is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.core.errors import InvalidInput, LoadError
from penstock.language.files import ModelFiles, read_json
from penstock.runtime.conversion import safetensors

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")  # by Hugging Face's model_type
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens")  # in the order in which several are joined
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")  # positions begin after the padding's id
_MODULE_PACKAGES = ("sentence_transformers.",)

Head = Literal["embed", "rank", "classify"]


@dataclass(frozen=True, slots=True)
class Dense:
    """A layer of sentence-transformers after the pooling: its folder, and whether tanh follows."""

    folder: Path
    tanh: bool


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """All that decides an encoder's graph besides its weights."""

    family: str
    layers: int
    heads: int
    width: int
    vocabulary: int
    positions: int  # the longest text, in tokens
    first_position: int
    types: bool  # its embeddings tell the two texts of a pair apart
    activation: str
    epsilon: float
    head: Head
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    labels: tuple[str, ...] = ()
    several: bool = False  # more than one label may be right at once
    plain: bool = False  # a ranker's number is given as it is, not as a probability
    longest: int = 0  # what its makers cut texts to, in tokens; 0 is `positions`
    prompt: str = ""  # put before texts by the library that it was made with; not here

    @property
    def context_tokens(self) -> int:
        return min(self.positions, self.longest or self.positions)


def reason(files: ModelFiles) -> str:
    """ "" when the encoder in a folder can be run, else why not."""
    try:
        shape(files)
    except (LoadError, InvalidInput) as error:
        return error.message
    return ""


def shape(files: ModelFiles, pooling: str = "") -> EncoderShape:
    """What config.json, and sentence-transformers' files beside it, say. `pooling` is instead of theirs.

    Raises:
        LoadError, InvalidInput: it is none that can be run, with the reason.
    """
    config = files.config
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise LoadError(f"its model_type is {family!r}; of encoders, {', '.join(FAMILIES)} can be run")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise LoadError(f"its position_embedding_type is {config['position_embedding_type']!r}, not 'absolute'")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise LoadError("it is a decoder (is_decoder, add_cross_attention)")
    if config.get("quantization_config"):
        raise LoadError("its weights are quantised in a way of their own")
    small = family == "distilbert"
    activation = str(config.get("activation" if small else "hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise LoadError(f"its activation is {activation!r}; {', '.join(ACTIVATIONS)} can be computed")
    shifted = family in _SHIFTED
    padding = _whole(config, "pad_token_id", 1, least=0) if shifted else -1
    task: Head = "embed" if files.task == "generate" else files.task
    labels = _labels(config) if task != "embed" else ()
    common = {
        "family": family,
        "layers": _whole(config, "n_layers" if small else "num_hidden_layers", 6 if small else 12),
        "heads": _whole(config, "n_heads" if small else "num_attention_heads", 12),
        "width": _whole(config, "dim" if small else "hidden_size", 768),
    }
    if common["width"] % common["heads"]:  # type: ignore[operator]
        raise LoadError(f"its width of {common['width']} is no multiple of its {common['heads']} heads")
    folder = files.path
    modules = _modules(folder) if task == "embed" else []
    chosen = (pooling,) if pooling else _pooling(folder, modules)
    if strange := [name for name in chosen if name not in POOLINGS]:
        raise LoadError(f"pooling {strange[0]!r}: it is {', '.join(POOLINGS)}")
    return EncoderShape(
        **common,  # type: ignore[arg-type]
        vocabulary=_whole(config, "vocab_size", 30522),
        positions=_whole(config, "max_position_embeddings", 512) - (padding + 1 if shifted else 0),
        first_position=padding + 1 if shifted else 0,
        types=not small and family != "mpnet" and _whole(config, "type_vocab_size", 2, least=0) > 1,
        activation=activation,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),  # type: ignore[arg-type]  # a number in every such file
        head=task, pooling=chosen, dense=_dense(folder, modules), labels=labels,
        several=config.get("problem_type") == "multi_label_classification", plain=_plain(config),
        longest=_longest(folder, modules), prompt=_prompt(folder),
    )  # fmt: skip


def _whole(config: Mapping[str, object], key: str, default: int, least: int = 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1 << 24:
        raise LoadError(f"config.json: {key} = {value!r} is no whole number from {least}")
    return value


def _labels(config: Mapping[str, object]) -> tuple[str, ...]:
    listed = config.get("id2label")
    if not isinstance(listed, dict):
        return tuple(f"LABEL_{index}" for index in range(_whole(config, "num_labels", 2)))
    try:
        named = {int(index): str(name) for index, name in listed.items()}
        return tuple(named[index] for index in range(len(named)))
    except (ValueError, KeyError) as error:
        raise LoadError(f"config.json: id2label does not count from 0 ({error})") from None


def _plain(config: Mapping[str, object]) -> bool:
    """Whether a ranker's own makers want its number as it is. Source: CrossEncoder of sentence-transformers, which
    takes a sigmoid of a single label unless config.json names another function."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else config.get("sbert_ce_default_activation_function")
    if named is not None and not str(named).endswith(("Identity", "Sigmoid")):
        raise LoadError(f"its scores pass through {named!r}; Sigmoid and Identity can be computed")
    return str(named).endswith("Identity")


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kinds and folders of sentence-transformers' modules after the encoder; nothing where there is no modules.json."""
    path = folder / "modules.json"
    if not path.exists():
        return []
    found: list[tuple[str, Path]] = []
    for entry in _entries(path):
        kind, below = str(entry.get("type", "")), str(entry.get("path", ""))
        name = kind.rpartition(".")[2]
        inside = (folder / below).resolve()
        if not kind.startswith(_MODULE_PACKAGES) or not inside.is_relative_to(folder.resolve()):
            raise LoadError(f"modules.json: {kind} at {below!r} is not of this folder and of sentence-transformers")
        if name not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise LoadError(f"modules.json: the module {name} cannot be run; Pooling, Dense and Normalize can")
        if name == "Transformer" and inside != folder.resolve():
            raise LoadError(f"modules.json: the encoder lies in {below!r}; it is looked for beside modules.json")
        found.append((name, inside))
    if [name for name, _ in found[:2]] != ["Transformer", "Pooling"]:
        raise LoadError("modules.json: it begins with something else than Transformer and Pooling")
    return found[1:]


def _entries(path: Path) -> list[Mapping[str, object]]:
    import json

    try:
        listed = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise LoadError(f"{path.name} holds no list of modules")
    return listed


def _pooling(folder: Path, modules: list[tuple[str, Path]]) -> tuple[str, ...]:
    path = next((below for name, below in modules if name == "Pooling"), folder / "1_Pooling") / "config.json"
    if not path.exists():
        if modules:
            raise LoadError(f"modules.json names {path.parent.name}, and {path.parent.name}/config.json is not there")
        return ("mean",)
    said = read_json(path)
    mode = said.get("pooling_mode")  # sentence-transformers 5 writes the name
    if mode is not None:
        return tuple(mode) if isinstance(mode, list) else (str(mode),)
    short = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean"}
    on = [key.removeprefix("pooling_mode_") for key, value in said.items() if key.startswith("pooling_mode_") and value]
    chosen = [short.get(name, name) for name in on]
    return tuple(sorted(chosen, key=lambda name: POOLINGS.index(name) if name in POOLINGS else -1)) or ("mean",)


def _dense(folder: Path, modules: list[tuple[str, Path]]) -> tuple[Dense, ...]:
    found = []
    for name, below in modules:
        if name != "Dense":
            continue
        said = read_json(below / "config.json")
        function = str(said.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        if function not in ("Tanh", "Identity"):
            raise LoadError(f"{below.name}: its activation_function is {function}; Tanh and Identity can be computed")
        if not safetensors.files(below):
            raise LoadError(f"{below.name} has no model.safetensors")
        found.append(Dense(below, function == "Tanh"))
    return tuple(found)


def _longest(folder: Path, modules: list[tuple[str, Path]]) -> int:
    path = folder / "sentence_bert_config.json"
    if not modules or not path.exists():
        return 0
    found = read_json(path).get("max_seq_length")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _prompt(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    if not path.exists():
        return ""
    said = read_json(path)
    prompts, name = said.get("prompts"), said.get("default_prompt_name")
    return str(prompts.get(name) or "") if isinstance(prompts, dict) and name else ""
