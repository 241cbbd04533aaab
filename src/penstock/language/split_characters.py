"""Tokens of a character that is split over several, found again from its text.

llama.cpp holds a token back while the text so far ends inside a character, and then tells the whole character with the
id of its last token only. The text, the last id and the number of tokens are known: what was held back is found in the
vocabulary. Where several ways to split the character exist, the one with the longest first piece is taken, which is
how byte-level tokenizers merge; the text is the same in each.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Mapping, Sequence

_MOST_PIECES = 16  # a search this deep has never been needed: a character has at most four bytes


@functools.cache
def _byte_alphabet() -> Mapping[str, int]:
    """The bytes that characters of a byte-level vocabulary stand for.

    Source: bytes_to_unicode of https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def inside_character(text: bytes) -> bool:
    """Whether a text ends inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


class Pieces:
    """The bytes of each token of a vocabulary, and the tokens of bytes."""

    def __init__(self, tokens: Sequence[str], model: str) -> None:
        """`tokens` and `model` are `tokenizer.ggml.tokens` and `tokenizer.ggml.model` of a GGUF header."""
        self._tokens = tokens
        self._byte_level = model == "gpt2"

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to a text."""
        text = self._tokens[token_id]
        if self._byte_level:
            alphabet = _byte_alphabet()
            try:
                return bytes(alphabet[letter] for letter in text)
            except KeyError:  # a special token, written as it is
                return text.encode()
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode()

    @functools.cached_property
    def _ids(self) -> Mapping[bytes, int]:
        # The first of several tokens with the same bytes; made when the first split character is met.
        return {self.bytes_of(at): at for at in range(len(self._tokens) - 1, -1, -1)}

    def held_back(self, content: str, last: int, count: int) -> list[int]:
        """The `count` tokens that came before `last`, with which they have become the text `content`."""
        whole, end = content.encode(), self.bytes_of(last)
        before = whole[: len(whole) - len(end)] if end and whole.endswith(end) else whole
        found = self._split(before, count) if count <= _MOST_PIECES else None
        # The bytes were no character at all and are lost (the text has U+FFFD for them): a byte that is none either.
        return found if found is not None else [self._ids.get(b"\xf0", self._ids.get(b"\xff", last))] * count

    def _split(self, text: bytes, count: int) -> list[int] | None:
        if count == 0:
            return [] if not text else None
        for end in range(len(text) - count + 1, 0, -1):
            token = self._ids.get(text[:end])
            if token is not None and (rest := self._split(text[end:], count - 1)) is not None:
                return [token, *rest]
        return None
