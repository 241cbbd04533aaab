"""Masks of the tokens that a grammar allows next: for engines that have no grammars of their own, and as a judge.

llguidance does the work; the grammar is the same that other engines get as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.core.errors import Internal, InvalidInput
from penstock.language.grammars import gbnf, lark_writing
from penstock.language.grammars.emptiness import without_empty_repeats

if TYPE_CHECKING:
    from penstock.language.grammars.compiling import Compiled


class TokenTable:
    """A vocabulary as masks need it, made once per model: the bytes of every token.

    `pieces` by id; `special` are the ids of control tokens, which no text can spell; `ends` are those that end.
    """

    def __init__(self, pieces: Sequence[bytes], special: Iterable[int], ends: Sequence[int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        if not ends:
            raise InvalidInput("a tokenizer without an end token cannot be kept to a grammar")
        self.size, self.ends = len(pieces), tuple(ends)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(pieces, sorted(set(special)), ends[0])), n_vocab=len(pieces)
        )

    @property
    def native(self) -> Any:
        return self._tokenizer


class _Vocabulary:
    """What llguidance asks of a tokenizer. It never encodes text for masks, so the greedy way is enough."""

    def __init__(self, pieces: Sequence[bytes], special: list[int], end: int) -> None:
        self.eos_token_id, self.bos_token_id, self.special_token_ids = end, None, special
        controls = set(special)
        self.tokens = [b"\xff<control%d>" % at if at in controls else piece for at, piece in enumerate(pieces)]
        self._ids = {piece: at for at, piece in reversed(list(enumerate(self.tokens))) if piece}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        found, at = [], 0
        while at < len(text):
            for length in range(min(self._longest, len(text) - at), 0, -1):
                if (token := self._ids.get(text[at : at + length])) is not None:
                    found.append(token)
                    at += length
                    break
            else:
                at += 1
        return found


def lark_text(compiled: Compiled) -> str:
    """The compiled grammar in llguidance's dialect."""
    if compiled.rules is None:
        raise Internal("this format has no grammar")
    bodies = without_empty_repeats(gbnf.productive(compiled.rules, compiled.root))
    return lark_writing.write(bodies, compiled.rules, compiled.always_json)


class Masker:
    """What one sequence may go on with. One per sequence; not thread-safe. `copy` for another that begins alike."""

    def __init__(self, compiled: Compiled, table: TokenTable, _matcher: Any = None) -> None:
        from llguidance import LLMatcher

        self._compiled, self._table = compiled, table
        self._matcher = _matcher or LLMatcher(
            table.native, LLMatcher.grammar_from_lark(lark_text(compiled)), log_level=0
        )
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidInput(f"the grammar cannot be followed: {str(self._matcher.get_error())[:300]}")

    def copy(self) -> Masker:
        return Masker(self._compiled, self._table, self._matcher.deep_copy())

    def mask(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """(ceil(vocabulary / 32),) uint32: bit i of word j stands for token 32 j + i. The end tokens are among them
        when the text may end here. Raises InvalidInput when the grammar turns out to need too much."""
        words = (self._table.size + 31) // 32
        if self._matcher.is_stopped():
            found = np.zeros(words, np.uint32)
        else:
            found = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[:words].copy()
            self._check()
        if self.may_end:
            for token in self._table.ends:
                found[token // 32] |= np.uint32(1 << (token % 32))
        return found

    @property
    def may_end(self) -> bool:
        """Whether the text so far is whole."""
        return bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def advance(self, token_id: int) -> bool:
        """Takes the token that was chosen; False when the grammar does not allow it, and nothing is taken."""
        if token_id in self._table.ends:
            return self.may_end
        return not self._matcher.is_stopped() and self._matcher.try_consume_tokens([token_id]) == 1

    def mask_after(self, token_ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """The mask after more tokens than were taken so far. Raises InvalidInput when one of them is not allowed."""
        for token in token_ids:
            if not self.advance(token):
                raise InvalidInput(f"token {token} is not what the grammar allows here")
        return self.mask()


def matches(compiled: Compiled, text: str, table: TokenTable) -> bool:
    """Whether the whole text is one that the grammar allows, byte by byte. For a table whose ids are bytes."""
    masker = Masker(compiled, table)
    return all(masker.advance(byte) for byte in text.encode()) and masker.may_end


def byte_table() -> TokenTable:
    """The table whose tokens are the 256 bytes and an end."""
    return TokenTable([bytes([byte]) for byte in range(256)] + [b""], [256], [256])
