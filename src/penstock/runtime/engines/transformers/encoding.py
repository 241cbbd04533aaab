"""Embeddings, scores of pairs and classes with transformers: whole batches, padded on the right, in one thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.core.errors import InvalidInput, LoadError, TooLarge
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation
from penstock.language.files import ModelFiles, read_json

POOLINGS = ("mean", "cls", "last", "max")
_BATCH = 32  # texts in one step
_NAMES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "max": "max", "max_tokens": "max",
          "lasttoken": "last", "last": "last"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the vectors of a text's tokens become one: `kind`, then linear layers, each with tanh after it or not."""

    kind: str
    dense: tuple[tuple[Path, bool], ...] = ()


def pooling(files: ModelFiles, asked: str = "") -> Pooling:
    """What sentence-transformers' files say; the mean where there are none. Raises: LoadError, InvalidInput."""
    if asked and asked not in POOLINGS:
        raise LoadError(f"pooling = {asked!r}: it is {', '.join(POOLINGS)}")
    path = files.path / "modules.json"
    if not path.exists():
        return Pooling(asked or "mean")
    try:
        listed = json.loads(path.read_text("utf-8"))
        modules = [(str(entry["type"]).rpartition(".")[2], str(entry.get("path", ""))) for entry in listed]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"modules.json cannot be read: {error}") from None
    kind, dense = "", []
    for name, below in modules:
        folder = (files.path / below).resolve()
        if not folder.is_relative_to(files.path.resolve()):
            raise LoadError(f"modules.json: {below!r} lies outside of the model's folder")
        if name == "Pooling":
            kind = _kind(read_json(folder / "config.json"))
        elif name == "Dense":
            dense.append((folder, _tanh(read_json(folder / "config.json"))))
        elif name == "Transformer" and below:
            raise LoadError(f"modules.json: the model lies in {below!r}; it is looked for beside modules.json")
        elif name not in ("Transformer", "Normalize"):
            raise LoadError(f"modules.json: the module {name} cannot be run; Pooling, Dense and Normalize can")
    return Pooling(asked or kind or "mean", tuple(dense))


def _kind(config: Mapping[str, object]) -> str:
    named = config.get("pooling_mode")  # sentence-transformers 5 writes the name
    on = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    chosen = [named] if isinstance(named, str) else named if isinstance(named, list) else on
    if len(chosen) != 1 or chosen[0] not in _NAMES:
        raise LoadError(f"its pooling is {', '.join(map(str, chosen))}; one of {', '.join(POOLINGS)} can be computed")
    return _NAMES[chosen[0]]


def _tanh(config: Mapping[str, object]) -> bool:
    function = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if function not in ("Tanh", "Identity"):
        raise LoadError(f"its activation_function is {function}; Tanh and Identity can be computed")
    return function == "Tanh"


def plain_score(config: Mapping[str, object]) -> bool:
    """Whether a ranker's number is given as it is. Source: CrossEncoder of sentence-transformers, which takes a sigmoid
    of a single label unless config.json names another function."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else config.get("sbert_ce_default_activation_function")
    if named is not None and not str(named).endswith(("Identity", "Sigmoid")):
        raise LoadError(f"its scores pass through {named!r}; Sigmoid and Identity can be computed")
    return str(named).endswith("Identity")


@dataclass(frozen=True, slots=True)
class _Around:
    """The ids that a tokenizer puts around texts, and the type of each part."""

    ids: tuple[tuple[int, ...], ...]  # before the first text, after it, …, after the last
    types: tuple[int, ...]  # of each of them
    texts: tuple[int, ...]  # of each text

    def joined(self, *texts: Sequence[int]) -> tuple[list[int], list[int]]:
        ids, types = list(self.ids[0]), [self.types[0]] * len(self.ids[0])
        for at, text in enumerate(texts):
            ids += [*text, *self.ids[at + 1]]
            types += [self.texts[at]] * len(text) + [self.types[at + 1]] * len(self.ids[at + 1])
        return ids, types


def _around(encoding: Any, count: int) -> _Around:
    parts: list[list[int]] = [[] for _ in range(count + 1)]
    types, texts = [0] * (count + 1), [0] * count
    seen = 0
    for token, kind, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if text is None:
            parts[seen].append(token)
            types[seen] = kind
        else:
            seen, texts[text] = text + 1, kind
    return _Around(tuple(map(tuple, parts)), tuple(types), tuple(texts))


class Encoder:
    """One model that embeds, ranks or classifies. `native` is its tokenizer, of the `tokenizers` library."""

    def __init__(self, model: Any, native: Any, how: Pooling, info: EngineInfo, *, several: bool, plain: bool) -> None:
        self._model, self._how = model, how
        self._several, self._plain = several, plain
        self._one, self._pair = _around(native.encode("a"), 1), _around(native.encode("a", "a"), 2)
        self._dense = [(_layer(folder, model), tanh) for folder, tanh in how.dense]
        self._thread = ThreadPoolExecutor(1, "transformers")
        self._queued = 0
        self.info = info

    def measure(self) -> None:
        """Puts the size of embeddings into `info`."""
        self.info = replace(self.info, embedding_size=len(self._embed([([0], [0])])[0]))

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        nothing: tuple[Delta, ...] = ()  # `info` says that it does not generate
        for delta in nothing:
            yield delta

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """(texts, embedding_size), each of length 1. Raises: InvalidInput, TooLarge."""
        for ids in batch:
            self._check(ids)
        return await self._in_thread(self._embed, [(list(ids), [0] * len(ids)) for ids in batch])

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """See `Engine.score`. Raises: InvalidInput, TooLarge."""
        texts = [self._pair.joined(a, b) if self.info.ranks else self._one.joined(a) for a, b in batch]
        for ids, _ in texts:
            self._check(ids)
        return await self._in_thread(self._score, texts)

    def load(self) -> EngineLoad:
        return EngineLoad(min(self._queued, 1), max(0, self._queued - 1))

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidInput("a text has no tokens")
        if min(ids) < 0 or max(ids) >= self.info.vocabulary:
            raise InvalidInput(f"a text has ids outside of the vocabulary, 0 to {self.info.vocabulary - 1}")
        if len(ids) > self.info.context_tokens:
            raise TooLarge(f"a text has {len(ids)} tokens; the model takes {self.info.context_tokens}: shorten it")

    async def _in_thread(self, step: Any, texts: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """In steps of a few texts of like length, so that other calls come between and little is padding."""
        loop = asyncio.get_running_loop()
        order = sorted(range(len(texts)), key=lambda at: len(texts[at][0]))
        found: list[list[float]] = [[] for _ in texts]
        self._queued += 1
        try:
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                values = await loop.run_in_executor(self._thread, step, [texts[at] for at in places])
                for at, value in zip(places, values, strict=True):
                    found[at] = value
        finally:
            self._queued -= 1
        return found

    def _inputs(self, texts: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(ids) for ids, _ in texts)
        padding = self._model.config.get_text_config().pad_token_id or 0

        def padded(rows: list[list[int]], value: int) -> Any:
            filled = [row + [value] * (longest - len(row)) for row in rows]
            return torch.tensor(filled, dtype=torch.long, device=self._model.device)

        inputs = {
            "input_ids": padded([ids for ids, _ in texts], padding),
            "attention_mask": padded([[1] * len(ids) for ids, _ in texts], 0),
        }
        if getattr(self._model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = padded([types for _, types in texts], 0)
        return inputs

    def _embed(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            inputs = self._inputs(texts)
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            vectors = _pooled(self._how.kind, hidden, mask)
            for layer, tanh in self._dense:
                vectors = torch.tanh(layer(vectors)) if tanh else layer(vectors)
            found: list[list[float]] = torch.nn.functional.normalize(vectors, dim=-1).tolist()
        return found

    def _score(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            logits = self._model(**self._inputs(texts)).logits.float()
            if self.info.ranks:
                values = logits if self._plain else torch.sigmoid(logits)
            else:
                values = torch.sigmoid(logits) if self._several else torch.softmax(logits, -1)
            found: list[list[float]] = values.tolist()
        return found


def _pooled(kind: str, hidden: Any, mask: Any) -> Any:
    """(texts, width) of (texts, tokens, width) and (texts, tokens, 1)."""
    import torch

    if kind == "cls":
        return hidden[:, 0]
    if kind == "last":
        last = mask.sum(1).squeeze(-1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if kind == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(1)
    return (hidden * mask).sum(1) / mask.sum(1)


def _layer(folder: Path, model: Any) -> Any:
    import torch
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.exists():
        raise LoadError(f"{folder.name} has no model.safetensors")
    weights = load_file(path)
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    if weight is None:
        raise LoadError(f"{folder.name}/model.safetensors has no linear.weight")
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight.float(), **({} if bias is None else {"bias": bias.float()})})
    return layer.to(model.device)
