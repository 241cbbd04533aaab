"""Checks a request against a signature and finds what it may be joined with. Built once a version, run each request."""

from __future__ import annotations

from collections.abc import Hashable

from penstock.core.errors import InvalidInput, Unsupported
from penstock.core.language import KIND
from penstock.core.messages import Request
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF


class RequestCheck:
    """Callable: request → (key, rows). Equal keys mean: may be joined along axis 0."""

    def __init__(self, signature: Signature) -> None:
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._required = {spec.name for spec in signature.inputs if not spec.optional}
        self._outputs = {spec.name for spec in signature.outputs}
        self._language = KIND in signature.metadata  # only the server itself speaks with its engine
        self._batchable = signature.batchable
        self._dynamic = not signature.inputs
        # A model with one input whose rows have one shape: the usual case, and then every request has the same key.
        self._only = signature.inputs[0] if len(signature.inputs) == 1 and self._required else None
        if self._only is not None and (
            self._language or not signature.batchable or any(size < 0 for size in self._only.shape[1:])
        ):
            self._only = None
        if self._only is not None:
            self._only_dtype = NUMPY_OF[self._only.datatype]
            self._only_row = self._only.shape[1:]

    def __call__(self, request: Request) -> tuple[Hashable, int]:
        """The key and the number of rows (1 for models without a batch axis).

        Raises:
            InvalidInput: a missing or unknown tensor, a datatype or shape that does not fit, inputs of unequal rows.
            Unsupported: it is of a language model, and came over a wire as tensors.
        """
        inputs = request.inputs
        only = self._only
        if only is not None and not request.parameters and not request.outputs and len(inputs) == 1:
            array = inputs.get(only.name)
            if (
                array is not None
                and array.dtype is self._only_dtype
                and array.shape[1:] == self._only_row
                and array.ndim
                and array.shape[0]
            ):
                return None, array.shape[0]
        return self._slow(request)

    def _slow(self, request: Request) -> tuple[Hashable, int]:
        inputs = request.inputs
        if self._language:
            if request.internal:
                return None, 1
            raise Unsupported(
                f"'{request.model}' is a language model and takes text, not tensors; ask /v1/chat/completions, "
                f'/v1/completions or /v1/embeddings with "model": "{request.model}", or '
                f"/v2/models/{request.model}/generate"
            )
        if self._outputs and (unknown := [name for name in request.outputs if name not in self._outputs]):
            raise InvalidInput(f"no output '{unknown[0]}'; the model has {_listed(self._outputs)}")
        if not self._dynamic:
            for name in inputs:
                if name not in self._inputs:
                    raise InvalidInput(f"no input '{name}'; the model takes {_listed(self._inputs)}")
            for name in self._required:
                if name not in inputs:
                    raise InvalidInput(f"input '{name}' is missing; the model takes {_listed(self._inputs)}")
            for name, array in inputs.items():
                self._inputs[name].check(array)
        rows = 1
        if self._batchable:
            sizes = {name: (array.shape[0] if array.ndim else None) for name, array in inputs.items()}
            if len(set(sizes.values())) > 1 or None in sizes.values():
                raise InvalidInput(f"axis 0 is the batch and must be equal for all inputs, got {sizes}")
            rows = next(iter(sizes.values())) or 0
            if rows < 1:
                raise InvalidInput("a request needs at least one row (axis 0 is the batch), got 0")
        key: Hashable = tuple(
            (name, array.dtype.char, array.shape[1:] if self._batchable else array.shape)
            for name, array in sorted(inputs.items())
        )
        if self._only is not None and not request.parameters:
            return None, rows
        if request.parameters:
            key = (key, tuple(sorted((name, repr(value)) for name, value in request.parameters.items())))
        return key, rows


def _listed(names: object) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))  # type: ignore[call-overload]  # any collection of str
