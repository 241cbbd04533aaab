"""Encoders: texts in, vectors, scores or probabilities out.

Texts of all calls that wait are computed together: as many as `_MOST_TOKENS` allow, sorted by length and cut into
batches of about one length, in a thread of its own (OpenVINO lets go of the interpreter's lock meanwhile).
Option: `pooling` ("mean", "cls", "max", "mean_sqrt_len_tokens"), instead of what the folder says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from penstock.core.errors import InvalidInput, LoadError, PenstockError, ServableError, TooLarge
from penstock.core.language import Delta, EngineInfo, EngineLoad, Generation
from penstock.language.files import ModelFiles
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.conversion import encoder_graph, encoder_shape
from penstock.runtime.conversion.encoder_shape import EncoderShape
from penstock.runtime.engines import EngineContext

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPTIONS = ("pooling",)
DTYPES = ("", "f32", "bf16", "int8")
_MAX_RUNNING = 64  # calls at once; their texts are joined
_MOST_TOKENS = 16384  # taken from those that wait, computed before others are looked at
_MOST_TEXTS = 48  # of one batch: more was not faster (MiniLM, two cores)
_STEP = 16  # lengths are rounded up to it: a new shape costs the library a plan
_WASTE = 1.25  # a batch's padded tokens, at most, for each real one; where it has more than _FEW texts
_FEW = 4


@dataclass(frozen=True, slots=True)
class _Text:
    ids: tuple[int, ...]
    second: int  # where the second text of a pair begins
    done: asyncio.Future[list[float]]


class EncoderEngine:
    """One compiled graph, one thread that runs it. `infer`: a batch of lists of ids, and where second texts begin."""

    def __init__(self, infer: Callable[[Sequence[_Text]], Array], info: EngineInfo, pairs: _Pairs) -> None:
        self._infer = infer
        self._pairs = pairs
        self._waiting: deque[_Text] = deque()
        self._running: tuple[_Text, ...] = ()
        self._working: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "encoder")
        self.info = info

    def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        raise NotImplementedError  # `info` says that it does not generate

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.embed`. Raises: InvalidInput, TooLarge."""
        return await self._all([(tuple(ids), len(ids)) for ids in batch])

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """See `Engine.score`. Raises: InvalidInput, TooLarge."""
        return await self._all([self._pairs.joined(first, second) for first, second in batch])

    def load(self) -> EngineLoad:
        return EngineLoad(len(self._running), len(self._waiting))

    async def close(self) -> None:
        """Lets what runs end; what waits is given up."""
        for text in self._waiting:
            text.done.cancel()
        self._waiting.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def _all(self, texts: Sequence[tuple[tuple[int, ...], int]]) -> list[list[float]]:
        for ids, _ in texts:
            if not ids:
                raise InvalidInput("a text has no tokens")
            if min(ids) < 0 or max(ids) >= self.info.vocabulary:
                raise InvalidInput(f"a text has ids outside of the vocabulary, 0 to {self.info.vocabulary - 1}")
            if len(ids) > self.info.context_tokens:
                raise TooLarge(
                    f"a text, or a pair, has {len(ids)} tokens; the model takes {self.info.context_tokens}: shorten it"
                )
        loop = asyncio.get_running_loop()
        mine = [_Text(ids, second, loop.create_future()) for ids, second in texts]
        self._waiting += mine
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        try:
            return list(await asyncio.gather(*(text.done for text in mine)))
        finally:
            for text in mine:
                text.done.cancel()  # what is not computed yet need not be

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken: list[_Text] = []
            tokens = 0
            while self._waiting and (not taken or tokens + len(self._waiting[0].ids) <= _MOST_TOKENS):
                text = self._waiting.popleft()
                if not text.done.cancelled():
                    taken.append(text)
                    tokens += len(text.ids)
            for batch in batches(taken):
                self._running = tuple(text for text in batch if not text.done.done())
                if self._running:
                    await self._compute(loop, self._running)
            self._running = ()

    async def _compute(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Text]) -> None:
        try:
            found = (await loop.run_in_executor(self._thread, self._infer, batch)).tolist()
        except Exception as error:  # of the library: the callers are told, and the next batch is tried
            told = error if isinstance(error, PenstockError) else ServableError(f"OpenVINO: {error}")
            for text in batch:
                if not text.done.done():
                    text.done.set_exception(told)
            return
        for text, values in zip(batch, found, strict=True):
            if not text.done.done():
                text.done.set_result(values)


def batches(texts: Sequence[_Text]) -> list[list[_Text]]:
    """Texts of about one length together, the shortest first."""
    found: list[list[_Text]] = []
    tokens = 0
    for text in sorted(texts, key=lambda text: len(text.ids)):
        now = found[-1] if found else None
        padded = 0 if now is None else len(text.ids) * (len(now) + 1)
        if now is None or len(now) >= _MOST_TEXTS or (len(now) >= _FEW and padded > _WASTE * (tokens + len(text.ids))):
            now, tokens = [], 0
            found.append(now)
        now.append(text)
        tokens += len(text.ids)
    return found


class _Pairs:
    """Puts two texts together as the model was trained with: their special tokens, and where the second begins."""

    def __init__(self, around: Sequence[int], twice: bool) -> None:
        self._begin, self._end = tuple(around[:1]), tuple(around[1:])
        self._between = self._end * 2 if twice else self._end

    def joined(self, first: Sequence[int], second: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The ids, and how many of them are of the first text."""
        if not second:
            ids = (*self._begin, *first, *self._end)
            return ids, len(ids)
        ahead = (*self._begin, *first, *self._between)
        return (*ahead, *second, *self._end), len(ahead)


def loaded(files: ModelFiles, context: EngineContext) -> EncoderEngine:
    """The engine. Raises: LoadError."""
    import openvino

    if context.dtype not in DTYPES:
        raise LoadError(f"dtype = {context.dtype!r}: encoders are computed as {', '.join(DTYPES[1:])}")
    if context.adapters:
        raise LoadError("encoders take no LoRA adapters with this engine: merge it into the weights")
    shape = encoder_shape.shape(files, str(context.options.get("pooling", "")))
    around = open_tokenizer(files).encode("", True)
    if len(around) != 2 and shape.head != "embed":
        raise LoadError(f"its tokenizer puts {len(around)} tokens around a text; an encoder's has one on each side")
    model = encoder_graph.build(files, shape, context.dtype == "int8")
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": context.threads, "PERFORMANCE_HINT": "LATENCY"}
    if context.dtype in ("f32", "bf16"):
        properties["INFERENCE_PRECISION_HINT"] = context.dtype
    try:
        compiled = openvino.Core().compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise LoadError(f"OpenVINO cannot compile {files.path.name}: {' '.join(str(error).split())[-400:]}") from error
    computed = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    longest = min(shape.positions, context.context_tokens or shape.context_tokens)
    info = EngineInfo(
        engine="openvino", engine_version=version("openvino"), context_tokens=longest, vocabulary=shape.vocabulary,
        generates=False, embeds=shape.head == "embed", ranks=shape.head == "rank", classifies=shape.head == "classify",
        max_running=context.max_running or _MAX_RUNNING, labels=shape.labels if shape.head == "classify" else (),
        embedding_size=int(compiled.output(0).get_partial_shape()[1].get_length()) if shape.head == "embed" else 0,
        weights_bytes=sum(path.stat().st_size for path in files.path.glob("*.safetensors")),
        precision="int8" if context.dtype == "int8" else computed, top_logprobs=-1,
        note=f"texts are taken as they are: {shape.prompt!r} is not put before them" if shape.prompt else "",
    )  # fmt: skip
    return EncoderEngine(_inferring(compiled.create_infer_request(), shape, longest), info, _Pairs(
        around, shape.family in ("roberta", "xlm-roberta", "camembert", "mpnet")
    ))  # fmt: skip


def _inferring(request: Any, shape: EncoderShape, longest: int) -> Callable[[Sequence[_Text]], Array]:
    import numpy as np

    def infer(batch: Sequence[_Text]) -> Array:
        lengths = np.array([len(text.ids) for text in batch], np.int32)
        size = min(-(-int(lengths.max()) // _STEP) * _STEP, longest)
        ids = np.zeros((len(batch), size), np.int32)
        types = np.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = text.ids
            types[row, text.second : len(text.ids)] = 1
        inputs = {"input_ids": ids, "lengths": lengths, **({"token_type_ids": types} if shape.types else {})}
        return np.array(request.infer(inputs)["values"])

    return infer
