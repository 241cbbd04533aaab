"""A model's tokenizer: text to token ids and back, the bytes of each token, and which ids end a generation.

Read from tokenizer.json beside the weights (Hugging Face, OpenVINO), from older vocabularies, or from a GGUF header.
A tokenizer may be used by several threads at once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from penstock.core.errors import LoadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native

    from penstock.language.files import ModelFiles

_REPLACEMENT = "\ufffd"

# Control tokens that end a turn or a text, whatever the files say of them: some list only the one that ended documents
# in pre-training. Source: llama.cpp, src/llama-vocab.cpp, the texts of `special_eog_ids`.
END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
        "<end_of_turn>", "<turn|>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "<|EOT|>", "_<EOT>",
        "<｜end▁of▁sentence｜>", "<end_of_utterance>", "[EOT]", "<eos>", "</s>", "<|eot|>", "<|end_of_turn|>", "[e~[",
    }
)  # fmt: skip


class Tokenizer:
    """Text to token ids and back. `bos`, `eos` and `pad` are None where the model has none.

    `end_ids` end a generation; `special_ids` are control tokens, which are not text.
    """

    vocabulary: int
    bos: int | None
    eos: int | None
    pad: int | None
    end_ids: frozenset[int]
    special_ids: frozenset[int]
    special_texts: frozenset[str]
    strips_first_space: bool  # a text's first token carries a space that is not of the text

    def encode(self, text: str, special: bool = True, *, controls: bool = True) -> list[int]:
        """The ids of `text`, with the model's own beginning (and end) around it when `special`.

        `controls`: control tokens that are spelled out in the text ("<|im_end|>") are taken as such; else they are
        text like any other, which is what text of strangers must be.
        """
        raise NotImplementedError

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token; nothing for an id beyond the vocabulary. They may be a part of a character."""
        raise NotImplementedError

    def token(self, token_id: int) -> str:
        """What the vocabulary calls a token; "" for an id beyond it."""
        raise NotImplementedError

    def decode(self, token_ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of tokens: their bytes joined, with U+FFFD for what is no UTF-8."""
        hidden = self.special_ids if skip_special else frozenset[int]()
        joined = b"".join([self.piece(token) for token in token_ids if token not in hidden])
        text = joined.decode("utf-8", "replace")
        return text[1:] if self.strips_first_space and text.startswith(" ") else text

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """The tokenizer of the echo engine: 0 to 255 are bytes, 256 ends, 257 begins. It has no control texts."""

    def __init__(self) -> None:
        self.vocabulary = 258
        self.eos, self.bos, self.pad = 256, 257, None
        self.end_ids = frozenset({256})
        self.special_ids = frozenset({256, 257})
        self.special_texts = frozenset()
        self.strips_first_space = False

    def encode(self, text: str, special: bool = True, *, controls: bool = True) -> list[int]:
        ids = list(text.encode("utf-8", "replace"))
        return [257, *ids] if special else ids

    def piece(self, token_id: int) -> bytes:
        return bytes((token_id,)) if 0 <= token_id < 256 else b""

    def token(self, token_id: int) -> str:
        return {256: "<end>", 257: "<begin>"}.get(token_id, chr(token_id) if 0 <= token_id < 256 else "")

    def id_of(self, token: str) -> int | None:
        return {"<end>": 256, "<begin>": 257}.get(token, ord(token) if len(token) == 1 and ord(token) < 256 else None)


class NativeTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    `around`: the ids to put before and after a text, where the library's own post-processor does not know them (GGUF).
    `ends`: ids that the model's files say end a generation; those of well-known texts are added.
    """

    def __init__(
        self,
        native: Native,
        *,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        ends: Iterable[int] = (),
        around: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        native.no_truncation()
        native.no_padding()
        self._native = native
        self._around = around
        # `encode_special_tokens` is a switch of the whole tokenizer: nobody else may encode while it is set.
        self._lock = threading.Lock()
        self.vocabulary = native.get_vocab_size(with_added_tokens=True)
        self.bos, self.eos, self.pad = bos, eos, pad
        added = native.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.special_texts = frozenset(entry.content for entry in added.values() if entry.special and entry.content)
        known = {token for token in self.special_ids if added[token].content in END_TEXTS}
        self.end_ids = frozenset({*ends, *known, *(() if eos is None else (eos,))})
        self._added = {token: entry.content.encode() for token, entry in added.items()}
        self._form = _Form(native)
        self.strips_first_space = self._form.strips_first_space
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, special: bool = True, *, controls: bool = True) -> list[int]:
        text = _encodable(text)
        own = special and self._around is None
        with self._lock:
            if controls:
                ids: list[int] = self._native.encode(text, add_special_tokens=own).ids
            else:
                self._native.encode_special_tokens = True
                try:
                    ids = self._native.encode(text, add_special_tokens=own).ids
                finally:
                    self._native.encode_special_tokens = False
        if special and self._around is not None:
            before, after = self._around
            # A prompt may begin with the beginning already, spelled out: it does not begin twice.
            before = () if controls and ids[: len(before)] == list(before) else before
            return [*before, *ids, *after]
        return ids

    def as_json(self) -> str:
        """The text of a tokenizer.json that gives the same ids."""
        from tokenizers import Tokenizer as Native
        from tokenizers import processors

        copy = Native.from_str(self._native.to_str())
        if self._around is not None and any(self._around):
            before, after = ([(self.token(token), token) for token in part] for part in self._around)
            single = [text for text, _ in before] + ["$A"] + [text for text, _ in after]
            copy.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*before, *after])
        return str(copy.to_str(pretty=False))

    def piece(self, token_id: int) -> bytes:
        found = self._pieces.get(token_id)
        if found is None:
            found = self._added.get(token_id)
            if found is None:
                token = self._native.id_to_token(token_id) if token_id >= 0 else None
                found = b"" if token is None else self._form.bytes_of(token)
            self._pieces[token_id] = found
        return found

    def token(self, token_id: int) -> str:
        return (self._native.id_to_token(token_id) if token_id >= 0 else None) or ""

    def id_of(self, token: str) -> int | None:
        found: int | None = self._native.token_to_id(token)
        return found


class _Form:
    """How a vocabulary writes bytes in its tokens, which the library's decoder tells."""

    def __init__(self, native: Native) -> None:
        decoder = repr(native.decoder)
        self._letters = byte_letters() if "ByteLevel" in decoder else None
        self._words = re.search(r'WordPiece\(prefix="([^"]*)"', decoder)
        self._fallback = "ByteFallback" in decoder
        # Llama's: Replace, ByteFallback, Fuse, Strip(" ", 1, 0); older ones: Metaspace.
        strips = re.search(r"Strip\(content=[\"'] [\"'], start=1", decoder) is not None
        unprefixed = re.search(r"prepend_scheme=(Never|\"never\"|never)", decoder) is not None
        self.strips_first_space = strips or self._words is not None or ("Metaspace" in decoder and not unprefixed)

    def bytes_of(self, token: str) -> bytes:
        if self._letters is not None:
            try:
                return bytes([self._letters[letter] for letter in token])
            except KeyError:
                return token.encode()
        if self._words is not None:
            prefix = self._words.group(1)
            return token[len(prefix) :].encode() if prefix and token.startswith(prefix) else b" " + token.encode()
        if self._fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes((int(token[3:5], 16),))
            except ValueError:
                pass
        return token.replace("▁", " ").encode()


def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for. Source: GPT-2's encoder.py, bytes_to_unicode."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return letters | {chr(256 + at): byte for at, byte in enumerate(others)}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON may carry
        return "".join(_REPLACEMENT if 0xD800 <= ord(letter) < 0xE000 else letter for letter in text)
    return text


def open_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of the model in `files`.

    Raises:
        LoadError: there is none, it is of a kind that cannot be read, or the package `tokenizers` is not installed.
    """
    if files.kind == "echo":
        return ByteTokenizer()
    if files.kind == "upstream":
        raise LoadError(f"{files.path.name} describes a model elsewhere: its tokenizer is not here")
    try:
        import tokenizers  # noqa: F401  # an extra: said once, here, in the server's own words
    except ImportError as error:
        raise LoadError('language models need the package tokenizers: pip install "penstock[llm]"') from error
    if files.kind == "gguf":
        from penstock.language.tokenizer_gguf import gguf_tokenizer

        return gguf_tokenizer(files.path.name, files.config)
    from penstock.language.tokenizer_folder import folder_tokenizer

    return folder_tokenizer(files)
