"""A tokenizer out of the header of a GGUF file. It gives the ids that llama.cpp gives; BERT's gives those of the
model's own tokenizer.json, from which llama.cpp differs in Hangul and in a few rare characters.

Source: llama.cpp, src/llama-vocab.cpp; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.core.errors import LoadError
from penstock.core.nearest import nearest
from penstock.language.pretokenizers import PRE_TOKENIZERS
from penstock.language.tokenizer import NativeTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native

# Kinds of tokens. Source: llama.h, enum llama_token_type.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


def gguf_tokenizer(name: str, values: Mapping[str, object]) -> NativeTokenizer:
    """The tokenizer that a GGUF header describes; `name` is the file's, for errors. Raises: LoadError."""
    kind = values.get("tokenizer.ggml.model")
    tokens = _texts(values.get("tokenizer.ggml.tokens"))
    if kind is None or not tokens:
        raise LoadError(f"{name} holds no tokenizer (no tokenizer.ggml.tokens in its header)")
    kinds = _numbers(values.get("tokenizer.ggml.token_type")) or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise LoadError(f"{name} has {len(tokens)} tokens but {len(kinds)} types of tokens")
    header = _Header(name, values, tokens, kinds)
    if kind == "gpt2":
        native, begins, ends = _byte_level(header)
    elif kind == "llama":
        native, begins, ends = _sentence_piece(header)
    elif kind == "bert":
        native, begins, ends = _word_piece(header)
    else:
        raise LoadError(
            f"{name} has a tokenizer of kind {kind!r}; gpt2, llama and bert can be read. Serve the model's "
            "Hugging Face folder instead, whose tokenizer.json any kind of tokenizer writes"
        )
    bos, eos = header.id("bos"), header.id("eos")
    if kind == "bert":
        bos, eos = bos if bos is not None else header.id("cls"), header.id("seperator")  # the key is spelled so
    begins, ends = header.flag("add_bos_token", begins), header.flag("add_eos_token", ends)
    stops = [token for key in ("eos", "eot", "eom") if (token := header.id(key)) is not None]
    listed = _numbers(values.get("tokenizer.ggml.eos_token_ids"))
    before = [bos] if begins and bos is not None else []
    after = [eos] if ends and eos is not None else []
    pad = header.id("padding")
    return NativeTokenizer(native, bos=bos, eos=eos, pad=pad, ends=[*stops, *listed], around=(before, after))


class _Header:
    def __init__(self, name: str, values: Mapping[str, object], tokens: Sequence[str], kinds: Sequence[int]) -> None:
        self.name = name
        self.values = values
        self.tokens = tokens
        self.kinds = kinds

    def id(self, key: str) -> int | None:
        found = self.values.get(f"tokenizer.ggml.{key}_token_id")
        return found if isinstance(found, int) and 0 <= found < len(self.tokens) else None

    def flag(self, key: str, default: bool) -> bool:
        found = self.values.get(f"tokenizer.ggml.{key}")
        return default if found is None else bool(found)

    def vocabulary(self) -> dict[str, int]:
        """Ids by token. Where two ids have one text, the first is what texts become, as in llama.cpp's own table."""
        found: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            found.setdefault(token, number)
        return found

    def add_listed(self, native: Native, *kinds: int) -> None:
        from tokenizers import AddedToken

        special: list[AddedToken] = []
        plain: list[AddedToken] = []
        for token, kind in zip(self.tokens, self.kinds, strict=True):
            if kind in kinds and token:
                control = kind != _USER_DEFINED
                (special if control else plain).append(AddedToken(token, special=control, normalized=False))
        native.add_special_tokens(special)
        native.add_tokens(plain)


def _byte_level(header: _Header) -> tuple[Native, bool, bool]:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Native

    name = str(header.values.get("tokenizer.ggml.pre", "default"))
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise LoadError(
            f"{header.name} cuts words in a way called {name!r}, which is not known here"
            f"{nearest(name, PRE_TOKENIZERS)}. Serve the model's Hugging Face folder: its tokenizer.json says how"
        )
    merges: list[tuple[str, str]] = []
    vocabulary = header.vocabulary()
    for line in _texts(header.values.get("tokenizer.ggml.merges")):
        left, space, right = line.partition(" ")
        if space and left in vocabulary and right in vocabulary and left + right in vocabulary:
            merges.append((left, right))
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.whole_words)
    native = Native(model)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=header.flag("add_space_prefix", False), use_regex=False)
    native.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    native.decoder = decoders.ByteLevel()
    header.add_listed(native, _CONTROL, _UNKNOWN, _USER_DEFINED)
    return native, pre.begins, False


def _sentence_piece(header: _Header) -> tuple[Native, bool, bool]:
    from tokenizers import Tokenizer as Native
    from tokenizers import decoders, models, normalizers

    scores = _floats(header.values.get("tokenizer.ggml.scores"))
    if len(scores) != len(header.tokens):
        raise LoadError(f"{header.name} has {len(header.tokens)} tokens but {len(scores)} scores")
    vocabulary = header.vocabulary()
    unknown = header.id("unknown")
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges_of_scores(header, vocabulary, scores),
        unk_token=None if unknown is None else header.tokens[unknown],
        fuse_unk=False,
        byte_fallback=_BYTE in header.kinds,
    )
    native = Native(model)
    prefixed = header.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    native.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefixed else [spaces])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    native.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    header.add_listed(native, _CONTROL, _UNKNOWN, _USER_DEFINED)
    return native, True, False


def _merges_of_scores(header: _Header, vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges in the order in which SentencePiece would do them: the pair whose joint has the highest score first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, number in vocabulary.items():
        if header.kinds[number] in (_CONTROL, _UNKNOWN, _BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], left, right, token[:cut], token[cut:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _word_piece(header: _Header) -> tuple[Native, bool, bool]:
    """BERT's. The file marks the beginnings of words with "▁" and has no "##" before the others."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Native

    listed = (_CONTROL, _UNKNOWN, _USER_DEFINED)
    written: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(header.tokens, header.kinds, strict=True)):
        text = token if kind in listed else token[1:] if token.startswith("▁") else "##" + token
        written.setdefault(text, number)
    unknown = header.id("unknown")
    name = "[UNK]" if unknown is None else header.tokens[unknown]
    native = Native(models.WordPiece(vocab=written, unk_token=name, max_input_chars_per_word=100))
    native.normalizer = normalizers.BertNormalizer(lowercase=True)
    native.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    native.decoder = decoders.WordPiece(prefix="##")
    names = ("cls", "seperator", "padding", "mask", "unknown", "bos", "eos")
    special = {header.tokens[found] for key in names if (found := header.id(key)) is not None}
    special.update(text for text, kind in zip(header.tokens, header.kinds, strict=True) if kind == _CONTROL)
    native.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in sorted(special)])
    return native, True, True


def _texts(value: object) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def _numbers(value: object) -> list[int]:
    return [number for number in value if isinstance(number, int)] if isinstance(value, list) else []


def _floats(value: object) -> list[float]:
    return [float(number) for number in value if isinstance(number, float)] if isinstance(value, list) else []
