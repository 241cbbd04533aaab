"""Tries a grammar where it can do no harm: in a pipeline of one tiny layer and the same vocabulary.

A grammar that does not compile makes `step()` raise in the middle of a batch, and again at each further step: in the
real pipeline it would take all other sequences with it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from penstock.core.errors import InvalidInput

_WIDTH = 64  # one head; the least that its attention kernel takes


class GrammarTrial:
    """Says of a grammar whether it compiles; not for several threads at once. `check` blocks for as long as compiling
    takes, and lets other threads go on. What it has compiled is kept with the tokenizer, for its other pipelines."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pipeline: Any = None

    def check(self, config: Any) -> None:
        """Raises: InvalidInput with the compiler's reason."""
        import numpy as np
        import openvino

        if self._pipeline is None:
            self._pipeline = self._made()
        try:
            # Not `step`: only `generate` lets go of the interpreter's lock, so that a thread can call it.
            self._pipeline.generate([openvino.Tensor(np.array([[0]], np.int64))], [config])
        except RuntimeError as error:
            self._pipeline = None  # it would raise the same again
            said = str(error).strip().splitlines() or [""]
            raise InvalidInput(f"the grammar does not compile: {said[0].rpartition(': ')[2][:300]}") from None

    def _made(self) -> Any:
        import gguf
        import numpy as np
        import openvino_genai

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            for add, value in (
                (writer.add_file_type, 1), (writer.add_block_count, 1), (writer.add_embedding_length, _WIDTH),
                (writer.add_head_count, 1), (writer.add_head_count_kv, 1), (writer.add_context_length, 64),
            ):  # fmt: skip
                add(value)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_rope_freq_base(10000.0)
            writer.add_tensor("token_embd.weight", np.ones((self._vocabulary, _WIDTH), np.float16))
            for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
                writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, np.float32))
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                writer.add_tensor(f"blk.0.{name}.weight", np.ones((_WIDTH, _WIDTH), np.float16))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            schedule = openvino_genai.SchedulerConfig()
            schedule.num_kv_blocks = 4
            return openvino_genai.ContinuousBatchingPipeline(path, self._tokenizer, schedule, "CPU")
