"""The probabilities that llama.cpp gives each token of a text, by its C interface, which xllamacpp exports.

The server inside xllamacpp tells probabilities only of tokens that it generates; a text needs one pass over a prompt
with the logits of all positions. Only functions, and the seven fields of `llama_batch`, are relied on: the two structs
of parameters, whose fields change, are passed on unread as they come, in blocks larger than they are (both are last
arguments, so that what lies behind them is not looked at). Source: llama.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penstock.core.errors import LoadError

CHUNK_TOKENS = 512  # the context of llama.cpp's default parameters, and what `llama-perplexity` takes


class _Parameters(ctypes.Structure):
    _fields_ = (("unread", ctypes.c_uint64 * 256),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    )  # fmt: skip


def llama_library() -> ctypes.CDLL:
    """llama.cpp and ggml, inside xllamacpp's extension module. Raises: LoadError."""
    spec = importlib.util.find_spec("xllamacpp.xllamacpp") if importlib.util.find_spec("xllamacpp") else None
    if spec is None or spec.origin is None:
        raise LoadError('xllamacpp must be installed: pip install "penstock[llm]"')
    return ctypes.CDLL(os.fspath(spec.origin))


def log_probabilities(model: Path, chunks: Sequence[Sequence[int]], threads: int) -> list[float]:
    """Natural logarithms of each token's probability after all before it in its chunk, the first of each left out.

    Raises: LoadError.
    """
    library = llama_library()
    try:
        _declare(library)
    except AttributeError as error:
        raise LoadError(f"this xllamacpp lacks a part of llama.cpp's C interface ({error}); 2026.10 has it") from None
    library.llama_backend_init()
    weights = library.llama_model_load_from_file(os.fsencode(model), library.llama_model_default_params())
    if not weights:
        raise LoadError(f"llama.cpp cannot load {model.name}")
    context = library.llama_init_from_model(weights, library.llama_context_default_params())
    if not context:
        raise LoadError(f"llama.cpp cannot make a context of {model.name}")
    if library.llama_n_ctx(context) < CHUNK_TOKENS:
        raise LoadError(
            f"llama.cpp's default context is {library.llama_n_ctx(context)} tokens here, not {CHUNK_TOKENS}"
        )
    library.llama_set_n_threads(context, threads, threads)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(weights))
    batch = library.llama_batch_init(CHUNK_TOKENS, 0, 1)
    found: list[float] = []
    for chunk in chunks:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        batch.n_tokens = len(chunk)
        for at, token in enumerate(chunk):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
            batch.seq_id[at][0] = 0
        if code := library.llama_decode(context, batch):
            raise LoadError(f"llama.cpp cannot compute {model.name}: llama_decode gave {code}")
        for at, token in enumerate(chunk[1:]):
            row = np.ctypeslib.as_array(library.llama_get_logits_ith(context, at), (vocabulary,)).astype(np.float64)
            most = row.max()
            found.append(float(row[token] - most - np.log(np.exp(row - most).sum())))
    return found


def _declare(library: ctypes.CDLL) -> None:
    """Arguments and results of what is called."""
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_backend_init", None, ()),
        ("llama_model_default_params", _Parameters, ()),
        ("llama_context_default_params", _Parameters, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, _Parameters)),
        ("llama_init_from_model", pointer, (pointer, _Parameters)),
        ("llama_n_ctx", ctypes.c_uint32, (pointer,)),
        ("llama_set_n_threads", None, (pointer, number, number)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", number, (pointer,)),
        ("llama_batch_init", _Batch, (number, number, number)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_clear", None, (pointer, ctypes.c_bool)),
        ("llama_decode", number, (pointer, _Batch)),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (pointer, number)),
    ):  # fmt: skip
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)
