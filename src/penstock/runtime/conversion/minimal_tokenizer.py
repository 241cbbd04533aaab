"""A tokenizer for OpenVINO GenAI that knows which bytes each token stands for, and nothing more.

The pipelines of OpenVINO GenAI want one. Prompts come as ids, so it is used only where grammars become masks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def minimal_tokenizer(pieces: Sequence[bytes], end: int) -> Any:
    """An `openvino_genai.Tokenizer` of a vocabulary: `pieces` by id, `end` the id that ends a text."""
    import openvino
    import openvino_genai
    from openvino_tokenizers import build_rwkv_tokenizer

    # From text to ids is never used, but tried at load: a byte that no piece covers ends the process (2026.4.1).
    forward, _ = build_rwkv_tokenizer(_lines([bytes([value]) for value in range(256)]))
    _, backward = build_rwkv_tokenizer(_lines(pieces))
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("tokenizer", forward), ("detokenizer", backward)):
            for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
                model.set_rt_info(end, key)
            openvino.save_model(model, Path(folder) / f"openvino_{name}.xml", compress_to_fp16=False)
        return openvino_genai.Tokenizer(folder)


def _lines(pieces: Sequence[bytes]) -> list[str]:
    """The form of an RWKV vocabulary file, whose middle is a Python literal: `repr` of bytes is always one."""
    return [f"{index} {bytes(piece) or b'<unused>'!r} {len(piece)}" for index, piece in enumerate(pieces)]
