"""What an OpenVINO graph of a language model says of itself, whoever made it."""

from __future__ import annotations

from typing import Any


class GraphShape:
    """What a graph says of itself: numbers of KV cache for one token, of weights, of tokens it knows."""

    def __init__(self, model: Any) -> None:
        self.vocabulary = int(model.output("logits").get_partial_shape()[-1].get_length())
        self.kv_numbers = 0
        self.weights = 0
        kinds: dict[str, int] = {}
        for node in model.get_ops():
            kind = node.get_type_name()
            if kind == "ReadValue":  # keys or values of a layer: (batch, heads, tokens, size)
                axes = node.get_output_partial_shape(0)
                self.kv_numbers += int(axes[1].get_length()) * int(axes[3].get_length())
            elif kind == "Constant":
                count = int(node.get_output_size() and _elements(node))
                name = str(node.get_element_type().get_type_name())
                kinds[name] = kinds.get(name, 0) + count
        self.weights = sum(kinds.values())
        largest = max(kinds, key=lambda name: kinds[name])
        self.precision = {"u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4"}.get(largest, largest)


def _elements(node: Any) -> int:
    count = 1
    for size in node.get_output_shape(0):
        count *= int(size)
    return count
