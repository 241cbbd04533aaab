"""What a user writes above a Python model: `@penstock.model(...)` and `penstock.Batch`. Values only; nothing runs.

The decorator hangs a `Declaration` on the function or class and gives the same object back, so the model stays an
ordinary callable that tests can call without a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, overload

from penstock.core.errors import InvalidInput
from penstock.core.tensor import TensorSpec, parse_spec

T = TypeVar("T", bound=Callable[..., object])

ATTRIBUTE = "__penstock__"


@dataclass(frozen=True, slots=True)
class Batch:
    """How requests are joined. `max_size` rows at most; a free worker waits `delay_s` seconds for a fuller batch;
    `sizes` (ascending) are the only sizes the model is run with, batches are padded up to the next one."""

    max_size: int = 64
    delay_s: float = 0.0
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if self.max_size < 1:
            raise InvalidInput(f"Batch(max_size={self.max_size}): a batch has at least 1 row")
        if not self.delay_s >= 0:
            raise InvalidInput(f"Batch(delay_s={self.delay_s}): the delay is in seconds and not negative")
        if any(size < 1 for size in self.sizes) or list(self.sizes) != sorted(set(self.sizes)):
            raise InvalidInput(f"Batch(sizes={self.sizes}): write row counts of at least 1, ascending")
        if self.sizes and self.sizes[-1] < self.max_size:
            object.__setattr__(self, "max_size", self.sizes[-1])


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the user said about a model. `None` means that it was not said."""

    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    batchable: bool | None = None
    batch: Batch | None = None
    concurrency: int | None = None  # batches one asyncio worker holds at once
    text: frozenset[str] = frozenset()  # inputs declared `str`: user code gets text, not bytes


@overload
def model(target: T, /) -> T: ...


@overload
def model(
    *,
    inputs: Mapping[str, str | TensorSpec] | None = None,
    outputs: Mapping[str, str | TensorSpec] | None = None,
    batch: Batch | bool | None = None,
    concurrency: int | None = None,
) -> Callable[[T], T]: ...


def model(
    target: T | None = None,
    /,
    *,
    inputs: Mapping[str, str | TensorSpec] | None = None,
    outputs: Mapping[str, str | TensorSpec] | None = None,
    batch: Batch | bool | None = None,
    concurrency: int | None = None,
) -> T | Callable[[T], T]:
    """The decorated function or class itself, declared as a model.

    `inputs` and `outputs` map names to declarations such as `"f4[n, 4]"`; axis 0 is the batch when it is the same word
    everywhere. `str[n]` hands text to the model, `bytes[n]` hands bytes; both are BYTES on the wire. `batch=False`
    keeps requests apart. `concurrency` is for `async def` models: how many calls one worker holds at once.

    Raises:
        InvalidInput: a declaration cannot be read, or asks for batches that its shapes rule out.
    """
    declaration = _declare(inputs, outputs, batch, concurrency)

    def decorate(target: T) -> T:
        setattr(target, ATTRIBUTE, declaration)
        return target

    return decorate if target is None else decorate(target)


def declaration_of(target: object) -> Declaration | None:
    """The Declaration hung on `target` itself (not on a base class), or None."""
    found = getattr(target, "__dict__", {}).get(ATTRIBUTE)
    return found if isinstance(found, Declaration) else None


def declare(
    inputs: Mapping[str, str | TensorSpec] | None, outputs: Mapping[str, str | TensorSpec] | None
) -> Declaration:
    """The Declaration of names and declarations that were found elsewhere, such as in annotations.

    Raises:
        InvalidInput: a declaration cannot be read.
    """
    return _declare(inputs, outputs, None, None)


def rows_along_axis_0(*specs: TensorSpec) -> bool:
    """Whether all of `specs` (at least one) have an axis 0 of any length."""
    return bool(specs) and all(spec.shape[:1] == (-1,) for spec in specs)


def _declare(
    inputs: Mapping[str, str | TensorSpec] | None,
    outputs: Mapping[str, str | TensorSpec] | None,
    batch: Batch | bool | None,
    concurrency: int | None,
) -> Declaration:
    if concurrency is not None and concurrency < 1:
        raise InvalidInput(f"concurrency={concurrency}: a worker holds at least 1 batch")
    given = {**(inputs or {}), **(outputs or {})}
    batchable: bool | None = None
    if inputs and outputs:
        words = {_first_axis(text) for text in given.values()} - {"-1"}
        batchable = len(words) <= 1 and rows_along_axis_0(*_specs(inputs), *_specs(outputs))
    if batch and batchable is False:
        raise InvalidInput(
            "batch= needs one batch axis: write the same word as axis 0 of every input and output, such as 'f4[n, 4]'"
        )
    return Declaration(
        inputs=None if inputs is None else _specs(inputs),
        outputs=None if outputs is None else _specs(outputs),
        batchable=bool(batch) if batch is not None else batchable,
        batch=batch if isinstance(batch, Batch) else None,
        concurrency=concurrency,
        text=frozenset(
            name for name, text in (inputs or {}).items() if isinstance(text, str) and text.strip().startswith("str")
        ),
    )


def _specs(given: Mapping[str, str | TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(spec if isinstance(spec, TensorSpec) else parse_spec(name, spec) for name, spec in given.items())


def _first_axis(declaration: str | TensorSpec) -> str:
    """The word that stands for axis 0; "-1" when any will do, "" when there is no axis."""
    if isinstance(declaration, TensorSpec):
        return str(declaration.shape[0]) if declaration.shape else ""
    return declaration.partition("[")[2].partition("]")[0].split(",")[0].strip()
