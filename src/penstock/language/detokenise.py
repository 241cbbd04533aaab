"""Token ids to text, as they come: never half a character, and in the end the text that decoding all at once gives."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from penstock.language.tokenizer import Tokenizer

_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokeniser:
    """Gives the text of one sequence of tokens, piece by piece; the work for a token does not grow with the text.

    `skip_special` hides control tokens, but for those in `shown` (marks that parsers of tool calls look for).
    `continues`: the tokens go on after others, a prompt's, so that a first space is the text's own.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special: bool = True,
        *,
        shown: Collection[int] = (),
        continues: bool = False,
    ) -> None:
        self._piece = tokenizer.piece
        self._hidden = tokenizer.special_ids.difference(shown) if skip_special else frozenset[int]()
        self._decoder = _utf8("replace")
        self._whole = True  # no half character is kept
        self._strips = tokenizer.strips_first_space and not continues

    def feed(self, token_id: int) -> str:
        """The text that is whole now that this token has come: "" while a character is half, or for a hidden token."""
        if token_id in self._hidden:
            return ""
        text = self._decode(self._piece(token_id))
        return self._stripped(text) if self._strips and text else text

    def feed_all(self, token_ids: Sequence[int]) -> str:
        """The text that is whole now that these tokens have come."""
        hidden, piece = self._hidden, self._piece
        if len(token_ids) == 1 and token_ids[0] not in hidden:
            raw = piece(token_ids[0])
            # What begins a character is not ASCII: after ASCII, and before it, there is nothing to be kept.
            text = raw.decode("ascii") if self._whole and raw.isascii() else self._decode(raw)
        else:
            text = self._decode(b"".join([piece(token) for token in token_ids if token not in hidden]))
        return self._stripped(text) if self._strips and text else text

    def _decode(self, raw: bytes) -> str:
        text = self._decoder.decode(raw)
        self._whole = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        """What is left when no more comes: U+FFFD for half a character, else nothing."""
        text = self._decoder.decode(b"", True)
        return self._stripped(text) if self._strips and text else text

    def spell(self, token_id: int) -> tuple[str, bytes]:
        """One token by itself, for log-probabilities: its text, U+FFFD for half a character, and its bytes."""
        raw = self._piece(token_id)
        return raw.decode("utf-8", "replace"), raw

    def _stripped(self, text: str) -> str:
        self._strips = False
        return text.removeprefix(" ")
