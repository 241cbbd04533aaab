"""What crosses between the server and the worker that holds an engine, as tensors and parameters of a request.

A generation is a stream: its token ids are the input, the rest of it is a parameter; each piece is one Delta.
An engine that speaks of whole conversations (`EngineInfo.chats`) gets the Ask in the Generation, and gives Events in
Deltas, both as `core.language_json` writes them; texts to embed are UTF-8 bytes to it instead of token ids.
Embeddings and scores are plain requests: the ids of all texts one after the other, and the length of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from penstock.core.language import KIND, Delta, EngineInfo, Generation
from penstock.core.messages import NO_DEADLINE, Parameter
from penstock.core.servable import PIECE, Signature, Tensors
from penstock.core.tensor import Array, TensorSpec

GENERATION = "generation"
OPERATION = "operation"

Operation = Literal["embed", "score"]

_info = msgspec.json.Decoder(EngineInfo)
_generation = msgspec.json.Decoder(Generation)
_delta = msgspec.msgpack.Decoder(Delta)
_pack = msgspec.msgpack.Encoder()
_text = msgspec.json.Encoder()


def signature(info: EngineInfo) -> Signature:
    """What a language model's worker tells the server. As many streams at once as the engine runs sequences."""
    return Signature(
        inputs=(TensorSpec("token_ids", "INT32", (-1,)), TensorSpec("lengths", "INT32", (-1,), optional=True)),
        outputs=(),
        platform=info.engine,
        batchable=False,
        streaming=True,
        concurrency=max(info.max_running, 2),
        metadata={KIND: _text.encode(info).decode(), "dynamic": "outputs", "engine_version": info.engine_version},
    )


def info_of(signature: Signature) -> EngineInfo | None:
    """What the engine behind a signature is and can do; None when it is a model of another kind."""
    found = signature.metadata.get(KIND)
    return None if found is None else _info.decode(found)


def ask(generation: Generation) -> tuple[dict[str, Array], dict[str, Parameter]]:
    """Inputs and parameters of a request for a generation."""
    ids = np.array(generation.token_ids, np.int32)
    rest = dataclasses.replace(generation, token_ids=(), deadline=_finite(generation.deadline))
    return {"token_ids": ids}, {GENERATION: _text.encode(rest).decode()}


def asked(inputs: Tensors, parameters: Mapping[str, Parameter]) -> Generation:
    """The generation that `ask` made inputs and parameters of."""
    rest = _generation.decode(str(parameters[GENERATION]))
    return dataclasses.replace(
        rest, token_ids=tuple(inputs["token_ids"].tolist()), deadline=rest.deadline or NO_DEADLINE
    )


def _finite(deadline: float) -> float:
    return 0.0 if deadline == NO_DEADLINE else deadline  # JSON knows no infinity


def piece(found: Delta) -> bytes:
    """What carries a delta."""
    return _pack.encode(found)


def delta(piece: bytes) -> Delta:
    """The delta that `piece` was made of."""
    return _delta.decode(piece)


def answered(outputs: Tensors) -> Delta:
    """The delta in the outputs that `piece` became."""
    return _delta.decode(outputs[PIECE].data)


def lists(operation: Operation, batch: Sequence[Sequence[int]]) -> tuple[dict[str, Array], dict[str, Parameter]]:
    """Inputs and parameters of a request about several texts; a pair is two of them, one after the other."""
    return {
        "token_ids": np.array([token for ids in batch for token in ids], np.int32),
        "lengths": np.array([len(ids) for ids in batch], np.int32),
    }, {OPERATION: operation}


def listed(inputs: Tensors) -> list[list[int]]:
    """The texts that `lists` was given."""
    ends = np.cumsum(inputs["lengths"]).tolist()
    ids = inputs["token_ids"].tolist()
    return [ids[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def shown(signature: Signature) -> Signature:
    """A language model's signature as metadata is to show it: text in, and what comes out of it. Its worker's own, of
    token ids, is between the server and the worker."""
    info = info_of(signature)
    if info is None:
        return signature
    if info.generates:
        outputs: tuple[TensorSpec, ...] = (TensorSpec("text_output", "BYTES", (-1,)),)
    elif info.embeds:
        outputs = (TensorSpec("embedding", "FP32", (-1, info.embedding_size or -1)),)
    else:
        outputs = (TensorSpec("scores", "FP32", (-1, len(info.labels) or 1)),)
    return dataclasses.replace(signature, inputs=(TensorSpec("text_input", "BYTES", (-1,)),), outputs=outputs)
