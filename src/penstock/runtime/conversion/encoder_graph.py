"""Builds the graph of an encoder out of its safetensors weights: OpenVINO's operators, no torch.

Inputs: `input_ids` and `lengths` (int32), and `token_type_ids` where the model has them; texts are padded on the right.
Output: `values` (texts, numbers) float32: vectors of length 1, a ranker's numbers, or probabilities of labels.
Source: modeling_bert.py, modeling_roberta.py, modeling_distilbert.py and modeling_mpnet.py of transformers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.core.errors import LoadError
from penstock.language.files import ModelFiles
from penstock.runtime.conversion.encoder_shape import EncoderShape
from penstock.runtime.conversion.safetensors import Weights

_FAR_BELOW = -1e9  # of a padded token's score, before softmax
_MOST_POSITIONS = 1024  # of tables of distances

# Where each family keeps a layer's tensors, and what stands before all of them.
_BERT = {
    "layer": "encoder.layer.{}.", "query": "attention.self.query", "key": "attention.self.key",
    "value": "attention.self.value", "out": "attention.output.dense", "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "last": "output.LayerNorm",
}  # fmt: skip
_NAMES = {
    "distilbert": {
        "layer": "transformer.layer.{}.", "query": "attention.q_lin", "key": "attention.k_lin",
        "value": "attention.v_lin", "out": "attention.out_lin", "norm": "sa_layer_norm",
        "up": "ffn.lin1", "down": "ffn.lin2", "last": "output_layer_norm",
    },
    "mpnet": {
        **_BERT, "query": "attention.attn.q", "key": "attention.attn.k", "value": "attention.attn.v",
        "out": "attention.attn.o", "norm": "attention.LayerNorm",
    },
}  # fmt: skip
_PREFIXES = ("", "bert.", "roberta.", "distilbert.", "mpnet.", "camembert.")
_EMBEDDING = "embeddings.word_embeddings.weight"


def build(files: ModelFiles, shape: EncoderShape, int8: bool) -> Any:
    """The graph, as an `openvino.Model`; its matrices as int8 with a scale for each row when `int8`.

    Raises:
        LoadError: the weights lack a tensor, or one has another shape than config.json says.
    """
    return _Builder(Weights(files.path), shape, int8).model()


class _Builder:
    def __init__(self, weights: Weights, shape: EncoderShape, int8: bool) -> None:
        import openvino.opset13 as op

        self._op: Any = op
        self._weights = weights
        self._shape = shape
        self._int8 = int8
        self._names = _NAMES.get(shape.family, _BERT)
        there = set(weights.names)
        found = next((start for start in _PREFIXES if start + _EMBEDDING in there), None)
        if found is None:
            raise LoadError(f"the weights lack the tensor {_EMBEDDING}")
        self._prefix = found
        self._there = there

    def model(self) -> Any:
        import openvino

        op, shape = self._op, self._shape
        ids = op.parameter([-1, -1], np.int32, name="input_ids")
        lengths = op.parameter([-1], np.int32, name="lengths")
        types = op.parameter([-1, -1], np.int32, name="token_type_ids") if shape.types else None
        inputs = [ids, lengths, *([types] if types is not None else [])]
        size = op.gather(op.shape_of(ids, output_type="i32"), _whole(1), _whole(0))  # of the longest text
        places = op.range(_whole(0), size, _whole(1), "i32")
        real = op.convert(op.less(op.unsqueeze(places, _whole(0)), op.unsqueeze(lengths, _whole(1))), "f32")
        hidden = self._embedded(ids, places, types)
        absent = op.multiply(op.subtract(_float(1), real), _float(_FAR_BELOW))
        bias = op.unsqueeze(absent, np.array([1, 2], np.int32))  # (texts, 1, 1, tokens)
        if shape.family == "mpnet":
            bias = op.add(bias, self._distances(places))
        for index in range(shape.layers):
            hidden = self._layer(hidden, bias, self._names["layer"].format(index))
        values = self._pooled(hidden, real, lengths) if shape.head == "embed" else self._head(self._first(hidden))
        result = op.result(values)
        model = openvino.Model([result], inputs, "encoder")
        for parameter in inputs:
            parameter.output(0).get_tensor().set_names({parameter.get_friendly_name()})
        model.output(0).get_tensor().set_names({"values"})
        return model

    # --- parts ---

    def _embedded(self, ids: Any, places: Any, types: Any) -> Any:
        op, shape = self._op, self._shape
        words = op.gather(self._matrix(_EMBEDDING, (shape.vocabulary, shape.width)), ids, _whole(0))
        table = self._read("embeddings.position_embeddings.weight")
        if table.shape != (shape.positions + shape.first_position, shape.width):
            raise LoadError(f"the table of positions is {table.shape}, which config.json does not say")
        own = op.constant(np.ascontiguousarray(table[shape.first_position :], np.float32))
        summed = op.add(words, op.gather(own, places, _whole(0)))
        if types is not None:
            kinds = op.constant(self._read("embeddings.token_type_embeddings.weight").astype(np.float32))
            summed = op.add(summed, op.gather(kinds, types, _whole(0)))
        elif f"{self._prefix}embeddings.token_type_embeddings.weight" in self._there:  # one kind, added to all
            summed = op.add(
                summed, op.constant(self._read("embeddings.token_type_embeddings.weight").astype(np.float32)[:1])
            )
        return self._norm(summed, "embeddings.LayerNorm")

    def _layer(self, hidden: Any, bias: Any, layer: str) -> Any:
        op, shape, names = self._op, self._shape, self._names
        width = shape.width
        split = np.array([0, 0, shape.heads, width // shape.heads], np.int32)

        def parts(name: str) -> Any:
            found = self._linear(hidden, layer + names[name], (width, width))
            return op.transpose(op.reshape(found, split, True), np.array([0, 2, 1, 3], np.int32))

        seen = op.scaled_dot_product_attention(parts("query"), parts("key"), parts("value"), bias)
        joined = op.reshape(op.transpose(seen, np.array([0, 2, 1, 3], np.int32)), np.array([0, 0, width]), True)
        hidden = self._norm(
            op.add(self._linear(joined, layer + names["out"], (width, width)), hidden), layer + names["norm"]
        )
        raised = self._activated(self._linear(hidden, layer + names["up"], (None, width)))
        return self._norm(
            op.add(self._linear(raised, layer + names["down"], (width, None)), hidden), layer + names["last"]
        )

    def _distances(self, places: Any) -> Any:
        """MPNet adds to each score what its head thinks of the distance: (1, heads, tokens, tokens)."""
        op, most = self._op, min(self._shape.positions, _MOST_POSITIONS)
        table = self._read("encoder.relative_attention_bias.weight").astype(np.float32)  # (buckets, heads)
        away = np.arange(-most, most + 1)  # of what is seen, from who sees
        of = op.constant(np.ascontiguousarray(table[_bucket(away, table.shape[0])].T))
        between = op.subtract(op.unsqueeze(places, _whole(0)), op.unsqueeze(places, _whole(1)))
        return op.unsqueeze(op.gather(of, op.add(between, _whole(most)), _whole(1)), _whole(0))

    def _pooled(self, hidden: Any, real: Any, lengths: Any) -> Any:
        op = self._op
        mask = op.unsqueeze(real, _whole(2))
        count = op.unsqueeze(op.maximum(op.convert(lengths, "f32"), _float(1)), _whole(1))
        parts = []
        for way in self._shape.pooling:
            if way == "cls":
                parts.append(self._first(hidden))
            elif way == "max":
                below = op.multiply(op.subtract(_float(1), mask), _float(_FAR_BELOW))
                parts.append(op.reduce_max(op.add(hidden, below), _whole(1)))
            else:
                by = op.sqrt(count) if way == "mean_sqrt_len_tokens" else count
                parts.append(op.divide(op.reduce_sum(op.multiply(hidden, mask), _whole(1)), by))
        found = parts[0] if len(parts) == 1 else op.concat(parts, 1)
        for dense in self._shape.dense:
            own = Weights(dense.folder)
            found = op.matmul(found, self._constant(own.read("linear.weight")), False, True)
            if "linear.bias" in own.names:
                found = op.add(found, op.constant(own.read("linear.bias").astype(np.float32)))
            found = op.tanh(found) if dense.tanh else found
        return op.normalize_l2(found, np.array([1], np.int64), 1e-12, "max")

    def _head(self, first: Any) -> Any:
        op, shape = self._op, self._shape
        count, width = len(shape.labels), shape.width
        if shape.family == "bert":
            pooled = op.tanh(self._linear(first, "pooler.dense", (width, width)))
            found = self._linear(pooled, "classifier", (count, width), whole=True)
        elif shape.family == "distilbert":
            pooled = op.relu(self._linear(first, "pre_classifier", (width, width), whole=True))
            found = self._linear(pooled, "classifier", (count, width), whole=True)
        else:
            pooled = op.tanh(self._linear(first, "classifier.dense", (width, width), whole=True))
            found = self._linear(pooled, "classifier.out_proj", (count, width), whole=True)
        if shape.head == "rank":
            return found if shape.plain else op.sigmoid(found)
        return op.sigmoid(found) if shape.several else op.softmax(found, 1)

    def _first(self, hidden: Any) -> Any:
        return self._op.gather(hidden, _whole(0), _whole(1))

    # --- pieces ---

    def _linear(self, value: Any, name: str, size: tuple[int | None, int | None], *, whole: bool = False) -> Any:
        op = self._op
        found = op.matmul(value, self._matrix(f"{name}.weight", size, whole=whole), False, True)
        return op.add(found, op.constant(self._read(f"{name}.bias", whole=whole).astype(np.float32)))

    def _activated(self, value: Any) -> Any:
        op, name = self._op, self._shape.activation
        if name == "relu":
            return op.relu(value)
        if name in ("silu", "swish"):
            return op.swish(value)
        return op.gelu(value, "erf" if name == "gelu" else "tanh")

    def _norm(self, value: Any, name: str) -> Any:
        op = self._op
        told = op.mvn(value, np.array([-1], np.int64), True, self._shape.epsilon, "inside_sqrt")
        return op.add(op.multiply(told, self._scale(name, "weight", "gamma")), self._scale(name, "bias", "beta"))

    def _scale(self, name: str, new: str, old: str) -> Any:
        """A norm's numbers, whose names were others in the first files of BERT."""
        key = new if f"{self._prefix}{name}.{new}" in self._there else old
        return self._op.constant(self._read(f"{name}.{key}").astype(np.float32))

    def _matrix(self, name: str, size: tuple[int | None, int | None], *, whole: bool = False) -> Any:
        found = self._read(name, whole=whole)
        if found.ndim != 2 or any(told not in (None, real) for told, real in zip(size, found.shape, strict=True)):
            raise LoadError(f"tensor {name} is {found.shape}, where config.json says {size}")
        return self._constant(found)

    def _constant(self, found: np.ndarray[Any, Any]) -> Any:
        op = self._op
        values = np.ascontiguousarray(found, np.float32)
        if not self._int8:
            return op.constant(values)
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / 127
        small = op.constant(np.round(values / scale).astype(np.int8))
        return op.multiply(op.convert(small, "f32"), op.constant(scale))

    def _read(self, name: str, *, whole: bool = False) -> np.ndarray[Any, Any]:
        return self._weights.read(name if whole else self._prefix + name)


def _bucket(away: np.ndarray[Any, Any], buckets: int, farthest: int = 128) -> np.ndarray[Any, Any]:
    """Distances (any sign) to rows of the table. Source: relative_position_bucket of modeling_mpnet.py."""
    half = buckets // 2
    distance = np.abs(away)
    exact = half // 2
    far = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(farthest / exact) * (half - exact)
    large = np.minimum(exact + far.astype(np.int64), half - 1)
    found: np.ndarray[Any, Any] = np.where(away > 0, half, 0) + np.where(distance < exact, distance, large)
    return found


def _whole(value: int) -> Any:
    import openvino.opset13 as op

    return op.constant(np.int32(value))


def _float(value: float) -> Any:
    import openvino.opset13 as op

    return op.constant(np.float32(value))
