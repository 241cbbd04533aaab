"""What a router reads of a request to a language model: whose it is, how it begins, and how much work it will be. Pure.

Every surface writes its conversation in other fields. All are brought into one text, in the order in which chat
templates put them: tools, instructions, then what was said from the first to the last. It is written anew with sorted
keys, so that spaces and the order of keys in a client's JSON make no difference: the text of a conversation's next turn
begins with that of the turn before.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import orjson

from penstock.core.errors import InvalidInput
from penstock.fleet.router.prefixes import BLOCK_BYTES

if TYPE_CHECKING:
    from penstock.fleet.router.lanes import Upstream

MOST_BYTES: Final = 1 << 20
"""Longer bodies are not cut into blocks: they are balanced by load only."""

BYTES_PER_TOKEN: Final = 4.0
"""Of English text with vocabularies of 32 to 128 thousand; what is not English has fewer. A router has no tokenizer."""

MOST_WAITED: Final = 64
"""Output tokens that count as load: what is written in the end, nobody knows."""

WRITTEN_COST: Final = 4.0
"""Of each, in prompt tokens: an answer on its way slows the others of its replica, by a part of each step. Tried in
virtual time (1, 2, 4): with less, long answers gather where a prompt is that all share, and take up to 1.16 of the time
of `least` to their ends; with 4, 1.01."""

_USUAL_OUTPUT = 256
_MOST_OUTPUT = 1024  # clients ask for room that they seldom use
_ROOT_BYTES = 1024  # routers agree by this much of the beginning on who has it when nobody does
_SAID: Final = ("messages", "input", "prompt", "text_input", "text", "query", "queries", "inputs", "content", "text_1")
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
_NO_OUTPUT: Final = ("embeddings", "embed", "rerank", "score", "classify", "tokenize", "detokenize", "count_tokens")


class Prompt:
    """One request as the balancer sees it.

    `keys` are those of its whole blocks (`prefixes.Prefixes`), `root` the bytes that stand for its beginning with every
    router alike. `prefill` and `decode` are what it is of a replica's load, in prompt tokens; `upstream` has it, from
    `entered` on.
    """

    __slots__ = (
        "adapter", "alone", "decode", "entered", "given", "keys", "matched", "output", "prefill", "root", "session",
        "tokens", "upstream",
    )  # fmt: skip

    def __init__(self, keys: tuple[int, ...], root: bytes, tokens: float, output: float) -> None:
        self.keys = keys
        self.root = root
        self.tokens = tokens  # of the prompt, estimated
        self.output = output  # tokens that will probably be written
        self.prefill = tokens
        self.decode = min(output, float(MOST_WAITED)) * WRITTEN_COST
        self.adapter = ""  # set where `model` names one
        self.session: bytes | None = None
        self.matched = 0  # blocks that its replica was believed to have
        self.upstream: Upstream | None = None
        self.alone = False  # its replica had nothing else to do
        self.entered = 0.0
        self.given = 0.0  # what its replica's load has of it now


def read_document(body: bytes) -> dict[str, object]:
    """A body as its fields. Raises: InvalidInput: it is no JSON object."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the request's body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the request's body is a JSON object")
    return document


def read_prompt(path: str, document: Mapping[str, object], size: int) -> Prompt:
    """The prompt of a request's fields. `size`: bytes of its body."""
    name = document.get("model")
    output = 0.0 if path.rstrip("/").endswith(_NO_OUTPUT) else _output(document)
    if size > MOST_BYTES:
        return Prompt((), b"", size / BYTES_PER_TOKEN, output)
    said = next((document[field] for field in _SAID if field in document), None)
    instructions = document.get("system", document.get("instructions"))
    try:
        text = orjson.dumps(
            [name, document.get("tools"), instructions, said], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        )
    except orjson.JSONEncodeError:  # it reads values 1,024 levels deep, and writes 254: no conversation is one
        return Prompt((), b"", size / BYTES_PER_TOKEN, output)
    root = blake2b(text[:_ROOT_BYTES], digest_size=16).digest()
    return Prompt(block_keys(text), root, len(text) / BYTES_PER_TOKEN, output)


def block_keys(text: bytes) -> tuple[int, ...]:
    """A key for each whole block, which stands for all text up to the block's end. Of this process only: Python's hash
    of bytes has a secret, so that no caller can write prompts that collide."""
    keys = []
    key = 0
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        key = hash((key, text[start : start + BLOCK_BYTES]))
        keys.append(key)
    return tuple(keys)


def _output(document: Mapping[str, object]) -> float:
    """Tokens that are probably written, for all choices."""
    for field in _LIMITS:
        limit = document.get(field)
        if isinstance(limit, int) and limit >= 0:
            break
    else:
        limit = _USUAL_OUTPUT
    choices = document.get("n")
    return min(limit, _MOST_OUTPUT) * (min(choices, 16) if isinstance(choices, int) and choices > 0 else 1)
