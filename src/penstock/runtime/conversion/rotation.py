"""The frequencies of rotary embeddings, exact.

OpenVINO GenAI's reader knows no scaled frequencies, and it saves the plain ones in f16: half of one unit in the last
place of 0.75 turns a key at position 4,000 by half a radian. So they are computed here and put into the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.core.errors import LoadError

Array = np.ndarray[Any, Any]
_HALF = 2.0**-11  # half a unit in the last place of f16
_LEAST = 2.0**-14  # below it f16 has fewer bits


def plain(base: float, size: int) -> Array:
    """(size / 2,) float64: how far each pair of a head's numbers turns from one position to the next, in radians.

    Source: RoFormer (arXiv 2104.09864), equation 15.
    """
    return float(base) ** -(np.arange(0, size, 2, dtype=np.float64) / size)


def reason(told: Mapping[str, Any]) -> str:
    """ "" when the frequencies that a config.json tells of can be computed, else why not."""
    kind = _kind(told)
    if kind not in ("default", "linear", "llama3"):
        return f"its rotary embedding is scaled in the way {kind!r}"
    if told.get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of each head is rotated"
    needed = {"linear": ("factor",), "llama3": _LLAMA3}.get(kind, ())
    for name in needed:
        if not isinstance(told.get(name), (int, float)) or not 0 < told[name] < math.inf:
            return f"its rotary embedding is scaled ({kind}), and {name} = {told.get(name)!r}"
    if kind == "llama3" and not told["high_freq_factor"] > told["low_freq_factor"]:
        low, high = told["low_freq_factor"], told["high_freq_factor"]
        return f"its rotary embedding is scaled ({kind}), and high_freq_factor = {high!r} is not above low, {low!r}"
    return ""


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def told_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of rotary embeddings, in one mapping, in its older forms and its newer one."""
    found: dict[str, Any] = {"rope_theta": 10000.0}
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None:
            found[name] = config[name]
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(given := config.get(name), dict):
            found |= {key: value for key, value in given.items() if value is not None}
    return found


def scaled(told: Mapping[str, Any], size: int) -> Array:
    """(size / 2,) float64: the frequencies that `told_of` tells of.

    Source: _compute_llama3_parameters and _compute_linear_scaling_rope_parameters in modeling_rope_utils.py of
    transformers.
    """
    found = plain(told["rope_theta"], size)
    kind = _kind(told)
    if kind == "linear":
        return found / float(told["factor"])
    if kind == "llama3":
        factor, low, high, trained = (float(told[name]) for name in _LLAMA3)
        turns = trained * found / (2 * np.pi)  # over the length that it was trained with
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - share) * found / factor + share * found
    return found


def _kind(told: Mapping[str, Any]) -> str:
    return str(told.get("rope_type", told.get("type", "default")))


def put(model: Any, base: float, wanted: Array) -> None:
    """Puts frequencies into a graph that was made with the plain ones of `base`. Raises: LoadError, it has others."""
    from openvino import opset15 as ops

    own = plain(base, 2 * wanted.size)
    changed = 0
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or tuple(node.get_output_shape(0)) != (1, wanted.size, 1):
            continue
        there = np.asarray(node.data, np.float64).ravel()
        if np.any(np.abs(there - own) > 1.01 * _HALF * np.maximum(own, _LEAST)):
            raise LoadError("the graph's rotary embedding is not the one of its header")
        made = ops.constant(wanted.astype(np.float32).reshape(1, -1, 1))
        place = node.output(0)
        for reader in list(place.get_target_inputs()):
            if reader.get_node().get_type_name() == "Convert":
                place = reader.get_node().output(0)
        for reader in list(place.get_target_inputs()):
            reader.replace_source_output(made.output(0))
        changed += 1
    if changed != 1:
        raise LoadError(f"the graph has {changed} tables of a rotary embedding; one was expected")
