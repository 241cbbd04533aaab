"""A tokenizer made of a GGUF header gives the ids of llama.cpp itself, and of the model's own tokenizer.json."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.language.files import look
from penstock.language.pretokenizers import PRE_TOKENIZERS
from penstock.language.tokenizer import NativeTokenizer, Tokenizer, open_tokenizer
from penstock.language.tokenizer_gguf import gguf_tokenizer

PIECES = [
    "hello", "World", "it's", "IT'S", "DON'T'LL", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "12", "1234567", "3.14", "é", "日本語",
    "한국어", "😀", "👨‍👩‍👧", "naïve", "Ünï", "...", "!?", "--", "=>", "$x^2", "`code`", "_a_", "<|im_end|>", "\u00a0", "\u2003", "\u200b",
    "\u3000", "ſ", "K", "٣٤", "Ⅷ", "½", "ǅ", "à", "\u0301", "\u0e33", "हिन्दी", "עברית", "\x85", "\x0b", "\x00", " a", "a1b2", "CamelCaseHTTP",
    "/path/to\n", '{"a":1}', "'s", "'S", " 'll",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20)
# One tokenizer, one server: what hypothesis warns of is meant.
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FAMILIES = ["smollm", "qwen2"]
OTHERS = [
    "gpt-2",
    "llama-bpe",
    "default",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
    "deepseek-coder",
    "falcon",
    "seed-coder",
    "bailingmoe",
    "qwen35",
    "dbrx",
    "hunyuan-dense",
    "mellum",
]


def write_tiny(path: Path, values: Mapping[str, Any]) -> None:
    """A model of one layer of zeros with a whole tokenizer, so that llama.cpp loads it."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer, width, count = gguf.GGUFWriter(str(path), "llama"), 32, len(values["tokenizer.ggml.tokens"])
    for key, number in {"block_count": 1, "context_length": 512, "embedding_length": width, "feed_forward_length": width,
                        "attention.head_count": 1, "attention.head_count_kv": 1, "rope.dimension_count": width, "vocab_size": count}.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in values.items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    square = (width, width)
    shapes = {
        "token_embd": (count, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
    }
    shapes |= {
        f"blk.0.{name}": square
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp's own tokenizer, of its server."""

    def __init__(self, path: Path) -> None:
        xllamacpp = pytest.importorskip("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.verbosity = -1
        self._server = xllamacpp.Server(parameters)

    def encode(self, text: str, special: bool, controls: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": special, "parse_special": controls}).encode()
        request = urllib.request.Request(
            self._server.listening_address + "/tokenize", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[int] = json.load(answer)["tokens"]
            return found


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.engines) for name in OTHERS)])
def pair(
    request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, LlamaCpp]]:
    """Ours and theirs, of SmolLM2's vocabulary with words cut as another family cuts them."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny(path, {**look(smollm2).config, "tokenizer.ggml.pre": request.param})
    yield open_tokenizer(look(path)), LlamaCpp(path)
    path.unlink()


@often
@given(text=texts, special=st.booleans(), controls=st.booleans())
def test_ids_are_those_of_llama_cpp(pair: tuple[Tokenizer, LlamaCpp], text: str, special: bool, controls: bool) -> None:
    ours, theirs = pair
    assert ours.encode(text, special, controls=controls) == theirs.encode(text, special, controls)


@pytest.fixture(scope="module", params=[True, False])
def sentence_piece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, LlamaCpp]:
    """A small vocabulary of scores, with and without a space before the text."""
    words = [
        "▁",
        *"abcdehilnortsé日",
        "he",
        "▁h",
        "ll",
        "o▁",
        "▁he",
        "llo",
        "▁hello",
        "in",
        "▁in",
        "the",
        "▁the",
        "er",
        "▁▁",
        "ab",
        "bab",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "<|im_end|>"]
    values = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words), 3],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(place) for place in range(len(words))] + [0.0],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": request.param,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("gguf") / "scores.gguf"
    write_tiny(path, values)
    return open_tokenizer(look(path)), LlamaCpp(path)


@often
@given(text=st.text(alphabet="abehillo thern\n日é😀", max_size=20) | texts, controls=st.booleans())
def test_scores_give_the_ids_of_llama_cpp(
    sentence_piece: tuple[Tokenizer, LlamaCpp], text: str, controls: bool
) -> None:
    ours, theirs = sentence_piece
    assert ours.encode(text, controls=controls) == theirs.encode(text, True, controls)


@pytest.fixture(scope="module")
def word_piece(minilm: Path) -> tuple[NativeTokenizer, Tokenizer]:
    """BERT's vocabulary as a GGUF header writes it, and the tokenizer.json that it came from."""
    listed = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    lines = (minilm / "vocab.txt").read_text("utf-8").splitlines()
    tokens = [
        line if line in listed else line[2:] if line.startswith("##") and len(line) > 2 else "▁" + line
        for line in lines
    ]
    values = {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if line in listed else 1 for line in lines],
        "tokenizer.ggml.cls_token_id": lines.index("[CLS]"), "tokenizer.ggml.seperator_token_id": lines.index("[SEP]"),
        "tokenizer.ggml.unknown_token_id": lines.index("[UNK]"), "tokenizer.ggml.padding_token_id": 0,
    }  # fmt: skip
    return gguf_tokenizer("bert.gguf", values), open_tokenizer(look(minilm))


@often
@given(text=texts)
def test_word_pieces_are_those_of_the_models_own_tokenizer(word_piece: tuple[Tokenizer, Tokenizer], text: str) -> None:
    ours, own = word_piece
    assert ours.encode(text) == own.encode(text)


def test_every_known_way_to_cut_words_can_be_built(smollm2: Path) -> None:
    values = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1, 1, 1],
    }  # fmt: skip
    for name in PRE_TOKENIZERS:
        assert gguf_tokenizer("x.gguf", {**values, "tokenizer.ggml.pre": name}).encode("ab", special=False) == [2]
