"""The probabilities that an OpenVINO graph gives each token of a text: one pass over each chunk, all logits read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.runtime.conversion.openvino_ir import MODEL, forbid_telemetry


def log_probabilities(folder: Path, chunks: Sequence[Sequence[int]], threads: int) -> list[float]:
    """Natural logarithms of each token's probability after all before it in its chunk, the first of each left out.

    Raises: LoadError.
    """
    forbid_telemetry()
    import openvino

    try:
        compiled = openvino.Core().compile_model(
            folder / MODEL, "CPU", {"INFERENCE_NUM_THREADS": threads, "KV_CACHE_PRECISION": "f16"}
        )
        request = compiled.create_infer_request()
        names = {name for place in compiled.inputs for name in place.get_names()}
        found: list[float] = []
        for chunk in chunks:
            request.reset_state()
            count = len(chunk)
            given: dict[str, np.ndarray[Any, Any]] = {
                "input_ids": np.array([chunk], np.int64), "attention_mask": np.ones((1, count), np.int64),
                "position_ids": np.arange(count, dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32),
            }  # fmt: skip
            request.infer({name: value for name, value in given.items() if name in names})
            rows = request.get_tensor("logits").data[0]
            if len(rows) != count:
                raise LoadError(f"the graph of {folder.name} gives the logits of {len(rows)} of {count} tokens")
            for at, token in enumerate(chunk[1:]):
                row = rows[at].astype(np.float64)
                most = row.max()
                found.append(float(row[token] - most - np.log(np.exp(row - most).sum())))
    except RuntimeError as error:
        raise LoadError(f"OpenVINO cannot compute {folder.name}: {' '.join(str(error).split())[-300:]}") from error
    return found
