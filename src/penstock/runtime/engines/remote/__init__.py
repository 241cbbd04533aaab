"""Servers elsewhere that speak OpenAI's API, behind a model's name here: `NAME.upstream.toml`.

They are asked in the order of the file. Until one has begun to answer, the next is asked when one cannot be reached,
fails, or has too much to do; afterwards a failure is an error of the request, for its words have been told. Whole
conversations go there and events come back. Texts to embed are UTF-8 bytes here, in place of token ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock import __version__
from penstock.core.errors import (
    DeadlineExceeded,
    InvalidInput,
    LoadError,
    Overloaded,
    PenstockError,
    ServableError,
    Unsupported,
)
from penstock.core.language import Ask, Delta, EngineInfo, EngineLoad, Event, Generation
from penstock.core.language_json import decode_ask, encode_event
from penstock.language.files import FileKind, ModelFiles
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.engines.remote import file as upstream_file
from penstock.runtime.engines.remote.body import body, check
from penstock.runtime.engines.remote.breaker import Breaker
from penstock.runtime.engines.remote.stream import Reader, error_text

if TYPE_CHECKING:
    import aiohttp

_MOST_ERROR_BYTES = 64 << 10
_MOST_LINE_BYTES = 4 << 20
_MOST_ANSWER_BYTES = 256 << 20
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_OURS = frozenset({401, 403, 404})  # a wrong key, or a model that is not there: the file's fault, not the caller's


class _NextPlease(Exception):
    """This upstream cannot answer; `error` is what to say when no other can."""

    def __init__(self, error: PenstockError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


class RemoteEngine:
    """The upstreams of one file."""

    def __init__(self, described: upstream_file.Described, context: EngineContext) -> None:
        self._described = described
        self._upstreams = tuple((upstream, Breaker()) for upstream in described.upstreams)
        self._running = 0
        self._session: tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession] | None = None
        more = described.extensions
        self.info = EngineInfo(
            engine="remote", engine_version=__version__, chats=True, vocabulary=0,
            context_tokens=min(described.context_tokens, context.context_tokens or described.context_tokens),
            embeds=described.embeds, top_logprobs=20, logit_bias=True, min_p=more, min_tokens=more, ignore_eos=more,
            repetition_penalty=more, grammars=frozenset({"regex", "ebnf", "json"}) if more else frozenset({"json"}),
            seeded=True, max_running=context.max_running or described.max_running,
            note="answered by " + ", then ".join(f"{u.model} at {u.url}" for u in described.upstreams),
        )  # fmt: skip

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """A Delta for each Event; `Usage` is in the last. Closing it closes the connection to the upstream."""
        if not generation.ask:  # a trial at load, which must cost nothing
            yield Delta(finish_reason="stop", cached_tokens=0)
            return
        ask = decode_ask(generation.ask)
        check(ask, extensions=self._described.extensions)
        self._running += 1
        try:
            async with contextlib.aclosing(self._events(ask, generation.deadline)) as events:
                async for event in events:
                    yield Delta(event=encode_event(event), load=self.load())
        finally:
            self._running -= 1
        yield Delta(finish_reason="stop")

    async def _events(self, ask: Ask, deadline: float) -> AsyncGenerator[Event, None]:
        reader = Reader(ask.n)
        async with contextlib.AsyncExitStack() as stack:
            response = await self._begin(stack, lambda upstream: body(ask, upstream), deadline)
            async for data in _lines(response, deadline):
                for event in reader.read(data):
                    yield event
                if reader.done:
                    break
        yield reader.end()

    async def _begin(self, stack: contextlib.AsyncExitStack, make: _Make, deadline: float) -> aiohttp.ClientResponse:
        """The first answer that is one; the stack closes it."""
        waited = False
        while True:
            refusal: _NextPlease | None = None
            for upstream, breaker in self._upstreams:
                if not breaker.admits(time.monotonic()):
                    continue
                try:
                    response = await self._post(stack, upstream, *make(upstream), deadline)
                except _NextPlease as problem:
                    breaker.failed(time.monotonic(), problem.retry_after_s)
                    refusal = problem
                except BaseException:
                    breaker.left()
                    raise
                else:
                    breaker.succeeded()
                    return response
            now = time.monotonic()
            wait_s = min(breaker.wait_s(now) for _, breaker in self._upstreams)
            if waited or not 0 < wait_s <= self._described.most_wait_s or now + wait_s >= deadline:
                if refusal is not None:
                    raise refusal.error
                raise Overloaded("no upstream can be asked now", retry_after_s=max(wait_s, 1.0))
            waited = True
            await asyncio.sleep(wait_s)  # what an upstream asked for

    async def _post(
        self, stack: contextlib.AsyncExitStack, upstream: upstream_file.Upstream, path: str,
        fields: Mapping[str, object], deadline: float,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        import aiohttp

        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before an upstream answered")
        headers = {**upstream.headers, "Content-Type": "application/json"}
        if upstream.key:
            headers["Authorization"] = f"Bearer {upstream.key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=upstream.timeout_s, sock_read=upstream.timeout_s)
        where = f"upstream {upstream.url}"
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                response = await stack.enter_async_context(
                    self._client().post(
                        upstream.url + path, data=msgspec.json.encode(fields), headers=headers, timeout=timeout,
                        allow_redirects=False,
                    )
                )  # fmt: skip
                if response.status == 200:
                    return response
                told = await response.content.read(_MOST_ERROR_BYTES)
                response.close()
        except aiohttp.ClientSSLError as error:
            raise _NextPlease(ServableError(f"{where}: its certificate is not trusted: {error}")) from None
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before an upstream answered") from None
            raise _NextPlease(ServableError(f"{where} did not answer in {upstream.timeout_s:g} s")) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _NextPlease(ServableError(f"{where} cannot be reached: {error}")) from None
        raise _refusal(where, response.status, told, response.headers)

    def _client(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session[0] is not loop:
            import aiohttp

            connector = aiohttp.TCPConnector(limit=0)
            self._session = (
                loop, aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
            )  # fmt: skip
        return self._session[1]

    async def embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine`; each list is the UTF-8 bytes of a text."""
        texts = [bytes(ids).decode("utf-8", "replace") for ids in batch]
        async with contextlib.AsyncExitStack() as stack:
            response = await self._begin(
                stack, lambda upstream: ("/embeddings", {"model": upstream.model, "input": texts}), math.inf
            )
            answer = await response.content.read(_MOST_ANSWER_BYTES)
            while piece := await response.content.read(_MOST_ANSWER_BYTES):
                answer += piece
                if len(answer) > _MOST_ANSWER_BYTES:
                    raise ServableError("the upstream sent too much")
        try:
            rows = sorted(msgspec.json.decode(answer, type=_Embeddings).data, key=lambda row: row.index)
        except msgspec.DecodeError as error:
            raise ServableError(f"the upstream sent what are no embeddings: {error}") from None
        if len(rows) != len(texts):
            raise ServableError(f"the upstream sent {len(rows)} embeddings for {len(texts)} texts")
        return [_of_length_one(row.embedding) for row in rows]

    async def score(self, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        raise Unsupported("an upstream does not rank")

    def load(self) -> EngineLoad:
        return EngineLoad(self._running)

    async def close(self) -> None:
        """Closes what is open to upstreams."""
        if self._session is not None:
            loop, session = self._session
            if loop is asyncio.get_running_loop():
                await session.close()
            else:  # that loop has ended, and its connections with it
                session.detach()
            self._session = None


class _Row(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Row]


class _Make(Protocol):
    """Path and body for an upstream."""

    def __call__(self, upstream: upstream_file.Upstream) -> tuple[str, Mapping[str, object]]: ...


def _of_length_one(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


async def _lines(response: aiohttp.ClientResponse, deadline: float) -> AsyncIterator[bytes]:
    """The contents of `data:` lines. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    import aiohttp

    buffer, taken = b"", 0
    try:
        async for piece in response.content.iter_any():
            taken += len(piece)
            *lines, buffer = (buffer + piece).split(b"\n")
            if len(buffer) > _MOST_LINE_BYTES or taken > _MOST_ANSWER_BYTES:
                raise ServableError("the upstream sent too much")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed in the middle of the upstream's answer")
        if buffer.startswith(b"data:"):
            yield buffer[5:].strip()
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise ServableError(f"the connection to the upstream broke in the middle of its answer: {error}") from None


def _refusal(where: str, status: int, told: bytes, headers: Mapping[str, str]) -> Exception:
    """What a status other than 200 means: to be raised."""
    try:
        found = msgspec.json.decode(told)
        found = found.get("error") or found if isinstance(found, dict) else found
    except msgspec.DecodeError:
        found = told.decode("utf-8", "replace")
    text = f"{where} says {status}: {error_text(found)}"
    if status in _AGAIN:
        after_s = _retry_after(headers, time.time())
        if status == 429 or after_s is not None:
            return _NextPlease(Overloaded(text, retry_after_s=after_s or 1.0), after_s)
        return _NextPlease(ServableError(text))
    if status in _OURS:
        return _NextPlease(ServableError(text))
    if 300 <= status < 400:
        return _NextPlease(ServableError(f"{where} redirects, which is not followed: write its true url"))
    if 400 <= status < 500:
        parameter = found.get("param") if isinstance(found, dict) else None
        return InvalidInput(text, parameter=parameter if isinstance(parameter, str) else "")
    return _NextPlease(ServableError(text))


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds. Source: RFC 9110, section 10.2.3; retry-after-ms is OpenAI's."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.strip().isdigit():
            return float(value)
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return None


class RemotePlug:
    """Descriptions of upstreams only."""

    name = "remote"
    preference = 50
    devices = frozenset({"cpu", "cuda"})
    kinds: frozenset[FileKind] = frozenset({"upstream"})

    def fit(self, files: ModelFiles) -> str:
        return "" if files.kind == "upstream" else "it takes descriptions of upstreams (NAME.upstream.toml)"

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        """See `EnginePlug`. Nothing is asked of the upstreams: they may be away for a while."""
        if context.options:
            raise LoadError(f"the engine remote has no options, not {', '.join(context.options)}: its file says all")
        return RemoteEngine(upstream_file.read(files.path), context)


plug = RemotePlug()
