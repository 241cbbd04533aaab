"""Python models: a function, or a class that is loaded once per worker.

What user code gets: arrays by name, as keywords (`def iris(x)`) or as one mapping (`def predict(self, inputs)`).
Tensors declared `str` come as text; `bytes`, and every text tensor that is not declared, as `bytes` objects. What it
may give back: a mapping of names to arrays, lists or scalars; a tuple in the order of the declared outputs; or, for
one output, just the value. `async def` models run several batches at once on the worker's loop; generators stream.

A model that declares nothing takes anything: its signature is empty and says `dynamic = "true"`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.core.declare import Declaration, rows_along_axis_0
from penstock.core.errors import InvalidInput, LoadError, PenstockError, ServableError, Unsupported
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import Array, TensorSpec
from penstock.runtime import returned, usercode
from penstock.runtime.frameworks import check_options, decoded

OPTIONS = ("object", "artifact", "batch", "concurrency")
_CONCURRENCY = 16  # calls that one asyncio worker holds at once, unless the user says otherwise


@dataclass(frozen=True, slots=True)
class Call:
    """One function of the user and how it wants its inputs."""

    function: Callable[..., Any]
    mapping: bool  # takes one mapping, not keywords
    names: frozenset[str] | None  # keywords it takes; None is any
    required: frozenset[str]
    parameters: bool
    text: frozenset[str]

    def __call__(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Any:
        """What the user's function gives back. Raises: InvalidInput when an undeclared model cannot take the names."""
        extra = {"parameters": parameters} if self.parameters else {}
        given: Mapping[str, Array] = inputs
        if self.text:
            given = {name: decoded(array) if name in self.text else array for name, array in inputs.items()}
        if self.mapping:
            return self.function(given, **extra)
        if self.names is not None and not (self.required <= given.keys() <= self.names):
            known = ", ".join(sorted(self.names)) or "no inputs"
            raise InvalidInput(f"the model takes {known}; the request has {', '.join(given) or 'none'}")
        return self.function(**given, **extra)


class PythonModel:
    """The servable of a plain model; awaitable when the user's function is."""

    def __init__(self, call: Call, signature: Signature, close: Callable[[], object] | None) -> None:
        self.signature = signature
        self._call = call
        self._close = close
        self._async = inspect.iscoroutinefunction(call.function)

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors | Awaitable[Tensors]:
        found = self._call(inputs, parameters)
        if self._async or inspect.isawaitable(found):
            return self._later(found)
        return returned.tensors(found, self.signature.outputs)

    async def _later(self, found: Awaitable[object]) -> Tensors:
        return returned.tensors(await found, self.signature.outputs)

    def close(self) -> None:
        if self._close is not None:
            self._close()


class StreamingModel(PythonModel):
    """The servable of a generator; a plain request gets the one answer, if it is one."""

    def __init__(
        self, call: Call | None, stream: Call, signature: Signature, close: Callable[[], object] | None
    ) -> None:
        super().__init__(call or stream, signature, close)
        self._plain = call
        self._stream = stream

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors | Awaitable[Tensors]:
        if self._plain is not None:
            return super().predict(inputs, parameters)
        answers = self.answer(inputs, parameters)
        if isinstance(answers, AsyncIterator):
            return self._one_later(answers)
        with closing(answers):  # type: ignore[type-var]  # `answer` makes generators, which can be closed
            return _one([item for item, _ in zip(answers, range(2), strict=False)])

    def answer(
        self, inputs: Tensors, parameters: Mapping[str, Parameter]
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]:
        """The answers, one per item of the user's generator. Closing it closes the user's."""
        items = self._stream(inputs, parameters)
        if hasattr(items, "__aiter__"):
            return self._async_items(items)
        if not hasattr(items, "__iter__"):
            raise ServableError(f"the stream is a {type(items).__name__}; give back a generator")
        return self._items(items)

    def _items(self, items: Any) -> Iterator[Tensors]:
        try:
            for item in items:
                yield returned.tensors(item, self.signature.outputs)
        finally:
            if hasattr(items, "close"):
                items.close()

    async def _async_items(self, items: Any) -> AsyncIterator[Tensors]:
        async with aclosing(items):
            async for item in items:
                yield returned.tensors(item, self.signature.outputs)

    async def _one_later(self, answers: AsyncIterator[Tensors]) -> Tensors:
        found: list[Tensors] = []
        async with aclosing(answers):  # type: ignore[type-var]  # `_async_items` is an async generator
            async for item in answers:
                found.append(item)
                if len(found) > 1:
                    break
        return _one(found)


class PythonAdapter:
    """User code. Runs in worker processes only."""

    name = "python"
    inline_safe = False
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        place, name = usercode.split(path)
        if usercode.entry_file(place) is not None:
            return True
        return bool(name) and "/" not in place and all(part.isidentifier() for part in place.split("."))

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        found, file = usercode.find(path, str(context.options.get("object", "")))
        declaration = usercode.declared(found)
        if inspect.isclass(found):
            model = _instance(found, _artifact(file, context), context)
            plain, stream = getattr(model, "predict", None), getattr(model, "answer", None)
            close = getattr(model, "close", None)
        else:
            plain, stream, close = found, None, None
        if plain is not None and _streams(plain):
            plain, stream = None, plain
        if plain is None and stream is None:
            raise LoadError(f"{getattr(found, '__name__', found)} has neither `predict` nor `answer`")
        signature = _signature(found, plain, stream, declaration, context)
        calls = [None if part is None else _call(part, signature, declaration) for part in (plain, stream)]
        if calls[1] is not None:
            return StreamingModel(calls[0], calls[1], signature, close)
        assert calls[0] is not None  # one of the two is there
        return PythonModel(calls[0], signature, close)


def _artifact(file: Path, context: LoadContext) -> Path:
    """The folder or file that `load` is given: the option `artifact`, beside the model's file if it is relative and
    there, else the model's folder."""
    text = str(context.options.get("artifact", ""))
    if not text:
        return file.parent
    beside = file.parent / text
    artifact = beside if beside.exists() else Path(text).expanduser()
    if not artifact.exists():
        raise LoadError(f"artifact {text!r} is neither in {file.parent.name}/ nor a path that exists")
    return artifact.resolve()


def _instance(kind: type, artifact: Path, context: LoadContext) -> Any:
    try:
        model = kind()
        load = getattr(model, "load", None)
        if load is not None:
            if inspect.iscoroutinefunction(load):
                raise LoadError(
                    f"{kind.__name__}.load is async; loading happens before the loop: write a plain `def load`"
                )
            wanted = inspect.signature(load).parameters
            given = {"artifact": artifact, "context": context}
            any_name = any(item.kind is item.VAR_KEYWORD for item in wanted.values())
            load(**{name: value for name, value in given.items() if any_name or name in wanted})
    except PenstockError:
        raise
    except Exception as error:  # user code may raise anything
        raise LoadError(f"loading {kind.__name__} failed: {type(error).__name__}: {error}") from error
    return model


def _streams(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _signature(found: object, plain: Any, stream: Any, declaration: Declaration, context: LoadContext) -> Signature:
    inputs = context.inputs or declaration.inputs or ()
    outputs = context.outputs or declaration.outputs or ()
    takes_nothing = declaration.inputs is None and not context.inputs and not usercode.arguments_of(plain or stream)
    dynamic = not inputs and declaration.inputs is None and not takes_nothing
    metadata = {"entry": getattr(found, "__qualname__", str(found))}
    if dynamic:
        metadata["dynamic"] = "true"
        metadata["arguments"] = ", ".join(usercode.arguments_of(plain or stream))
    elif not outputs:
        metadata["dynamic"] = "outputs"
    return Signature(
        inputs=inputs,
        outputs=outputs,
        platform="python",
        batchable=plain is not None and not takes_nothing and _batchable(found, inputs, outputs, declaration, context),
        streaming=stream is not None,
        concurrency=_concurrency(plain, declaration, context),
        metadata=metadata,
        batch=declaration.batch,
    )


def _batchable(
    found: object,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    declaration: Declaration,
    context: LoadContext,
) -> bool:
    """Whether axis 0 is the batch: the option, else the declaration. Of a model that declares nothing, a class is
    batched (its `predict` is written for batches) and a plain function is not (it may be anything)."""
    if "batch" in context.options:
        wanted = bool(context.options["batch"])
    elif declaration.batchable is not None and not (context.inputs or context.outputs):
        wanted = declaration.batchable
    else:
        wanted = declaration.batch is not None or bool(inputs and outputs) or inspect.isclass(found)
    return wanted and all(rows_along_axis_0(*specs) for specs in (inputs, outputs) if specs)


def _concurrency(plain: Any, declaration: Declaration, context: LoadContext) -> int:
    wanted = context.options.get("concurrency", declaration.concurrency)
    is_async = inspect.iscoroutinefunction(plain)
    if wanted is None:
        return _CONCURRENCY if is_async else 1
    if not is_async and int(wanted) > 1:
        raise LoadError(
            f"concurrency = {wanted} is for `async def` models; this one is a plain `def`: add workers instead"
        )
    if int(wanted) < 1:
        raise LoadError(f"concurrency = {wanted}: a worker holds at least 1 batch")
    return int(wanted)


def _call(function: Callable[..., Any], signature: Signature, declaration: Declaration) -> Call:
    arguments = usercode.arguments_of(function)
    takes = inspect.signature(function).parameters
    declared = [spec.name for spec in signature.inputs]
    mapping = len(arguments) == 1 and "inputs" in arguments and "inputs" not in declared
    any_name = any(item.kind is item.VAR_KEYWORD for item in arguments.values())
    named = {
        name: item for name, item in arguments.items() if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
    }
    required = frozenset(name for name, item in named.items() if item.default is item.empty)
    if declared and not mapping:
        unknown = [] if any_name else [name for name in declared if name not in named]
        optional = {spec.name for spec in signature.inputs if spec.optional}
        missing = sorted(required - set(declared)) + sorted(required & optional)
        if unknown or missing:
            raise LoadError(
                f"the declared inputs are {', '.join(declared)}, the arguments of {function.__name__} are "
                f"{', '.join(arguments) or 'none'}: name them alike (optional inputs need a default), or take one "
                "argument called `inputs`"
            )
    return Call(
        function=function,
        mapping=mapping,
        names=None if any_name or mapping or declared else frozenset(named),
        required=required,
        parameters="parameters" in takes,
        text=declaration.text & set(declared),
    )


def _one(found: list[Tensors]) -> Tensors:
    if len(found) == 1:
        return found[0]
    raise Unsupported(
        f"the model streams and gave {'no answer' if not found else 'more than one answer'}; ask for a stream instead"
    )


plug = PythonAdapter()
