"""A Triton ensemble: the `ensemble_scheduling` of a config.pbtxt, and the text format that it is written in.

A step runs as soon as the tensors of its `input_map` are there, whatever the order of the list. Fields that say how a
model runs (instance groups, optimization) have no effect on an ensemble, there as here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.graph_calls import TENSORS
from penstock.core.nearest import nearest
from penstock.core.tensor import NUMPY_OF, TensorSpec
from penstock.graphs.definition import (
    DATAFLOW,
    MODEL,
    Graph,
    Node,
    Step,
    Target,
)

ROOT: Final = "ensemble"
_TYPES: Final = {
    f"TYPE_{name}": name for name in NUMPY_OF if name != "BYTES"
} | {"TYPE_STRING": "BYTES", "TYPE_BYTES": "BYTES"}  # fmt: skip
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<mark>[{}<>\[\]:,;])|(?P<word>[^\s{}<>\[\]:,;"'\#]+)"""
)
_DEEPEST, _MOST_TOKENS = 32, 200_000
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "0": "\0"}


@dataclass(slots=True)
class Message:
    """A message of the text format: every value of each field, in order. `quoted` values are kept without quotes."""

    fields: dict[str, list[str | Message]] = field(default_factory=dict)

    def words(self, name: str) -> list[str]:
        """The plain values of a field. Raises: InvalidInput when one is a message."""
        values = self.fields.get(name, [])
        for value in values:
            if isinstance(value, Message):
                raise InvalidInput(f"config.pbtxt: {name} is a message where a value belongs")
        return [str(value) for value in values]

    def word(self, name: str, default: str = "") -> str:
        """The last plain value of a field. Raises: InvalidInput."""
        return ([default, *self.words(name)])[-1]

    def messages(self, name: str) -> list[Message]:
        """The messages of a field. Raises: InvalidInput when one is a plain value."""
        values = self.fields.get(name, [])
        for value in values:
            if not isinstance(value, Message):
                raise InvalidInput(f"config.pbtxt: {name} is {value!r} where {{ … }} belongs")
        return [value for value in values if isinstance(value, Message)]


def read(text: str, name: str) -> Graph:
    """The graph of an ensemble's config.pbtxt in the folder called `name`.

    Raises:
        InvalidInput: it cannot be read, is no ensemble, or its tensors do not fit together.
    """
    config = parse(text)
    own_name = config.word("name", name)
    if own_name != name:
        raise InvalidInput(f"config.pbtxt calls the model {own_name!r}, and its folder {name!r}; make them equal")
    scheduling = config.messages("ensemble_scheduling")
    if len(scheduling) != 1:
        raise InvalidInput("config.pbtxt has no ensemble_scheduling; it is no ensemble")
    platform = config.word("platform", config.word("backend", "ensemble"))
    if platform != "ensemble":
        raise InvalidInput(f"config.pbtxt: an ensemble has the platform 'ensemble', not {platform!r}")
    batch = _whole(config.word("max_batch_size", "0"), "max_batch_size", least=0)
    inputs = tuple(_tensor(each, batch > 0, "input") for each in config.messages("input"))
    outputs = tuple(_tensor(each, batch > 0, "output") for each in config.messages("output"))
    if not inputs or not outputs:
        raise InvalidInput("config.pbtxt: an ensemble declares its inputs and outputs")
    steps = _named([_step(each, index) for index, each in enumerate(scheduling[0].messages("step"))])
    if not steps:
        raise InvalidInput("config.pbtxt: ensemble_scheduling has no step")
    most = _whole(scheduling[0].word("max_inflight_requests", "0"), "max_inflight_requests", least=0)
    _check_producers(steps, {spec.name for spec in inputs})
    return Graph(
        name,
        TENSORS,
        ROOT,
        {ROOT: Node(ROOT, DATAFLOW, steps)},
        "triton",
        inputs,
        outputs,
        concurrency=most or 256,
        batchable=batch > 0,
        notes=tuple(key for key in ("instance_group", "optimization", "model_warmup") if key in config.fields),
    )


def _named(steps: list[Step]) -> tuple[Step, ...]:
    """Steps of one model get numbers: their names tell them apart."""
    names = [step.name for step in steps]
    seen: dict[str, int] = {}
    out: list[Step] = []
    for step in steps:
        if names.count(step.name) == 1:
            out.append(step)
            continue
        seen[step.name] = seen.get(step.name, 0) + 1
        out.append(Step(f"{step.name}-{seen[step.name]}", step.target, inputs=step.inputs, outputs=step.outputs))
    return tuple(out)


def _step(message: Message, index: int) -> Step:
    known = ("model_name", "model_version", "input_map", "output_map", "model_namespace")
    for key in message.fields:
        if key not in known:
            raise InvalidInput(f"config.pbtxt step {index}: there is no {key!r}{nearest(key, known)}")
    model = message.word("model_name")
    if not model:
        raise InvalidInput(f"config.pbtxt step {index} has no model_name")
    version = _whole(message.word("model_version", "-1"), f"model_version of step {model}", least=-1)
    return Step(
        model,
        Target(MODEL, model, "" if version < 0 else str(version)),
        inputs=_map(message, "input_map", model),
        outputs=_map(message, "output_map", model),
    )


def _map(message: Message, name: str, model: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in message.messages(name):
        key, value = each.word("key"), each.word("value")
        if not key or not value:
            raise InvalidInput(f"config.pbtxt: {name} of step {model} has an entry without key or value")
        if key in found:
            raise InvalidInput(f"config.pbtxt: {name} of step {model} names {key!r} twice")
        found[key] = value
    if not found:
        raise InvalidInput(f"config.pbtxt: step {model} has no {name}")
    return found


def _check_producers(steps: tuple[Step, ...], inputs: set[str]) -> None:
    makers: dict[str, str] = dict.fromkeys(inputs, "the request")
    for step in steps:
        for value in step.outputs.values():
            if value in makers:
                raise InvalidInput(
                    f"config.pbtxt: ensemble tensor {value!r} comes from {makers[value]} and from step {step.name}"
                )
            makers[value] = f"step {step.name}"


def _tensor(message: Message, batched: bool, what: str) -> TensorSpec:
    name, kind = message.word("name"), message.word("data_type")
    if not name:
        raise InvalidInput(f"config.pbtxt: an {what} has no name")
    if kind not in _TYPES:
        raise InvalidInput(f"config.pbtxt: {what} {name!r} has the data_type {kind!r}{nearest(kind, _TYPES)}")
    dims = tuple(_whole(each, f"dims of {name}", least=-1) for each in message.words("dims"))
    optional = message.word("optional", "false").lower() in ("true", "t", "1")
    return TensorSpec(name, _TYPES[kind], (-1, *dims) if batched else dims, optional)


def _whole(text: str, what: str, *, least: int) -> int:
    try:
        number = int(text) if len(text) < 20 else None
    except ValueError:
        number = None
    if number is None or number < least:
        raise InvalidInput(f"config.pbtxt: {what} is {text[:40]!r}; a whole number of at least {least} belongs there")
    return number


def parse(text: str) -> Message:
    """The message that protobuf's text format says: both spellings of lists, `#` comments, either kind of quotes.

    Raises:
        InvalidInput: it cannot be read.

    Source: https://protobuf.dev/reference/protobuf/textformat-spec/
    """
    tokens = _Tokens(text)
    message = _message(tokens, "", 0)
    return message


class _Tokens:
    """The tokens of a text with their lines. A token is (kind, text): kind is text, mark or word."""

    def __init__(self, text: str) -> None:
        self._items: list[tuple[str, str, int]] = []
        self._at = 0
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise InvalidInput(f"config.pbtxt line {line}: cannot read {text[at : at + 20]!r}")
            if match.lastgroup is not None:
                self._items.append((match.lastgroup, match[match.lastgroup], line))
                if len(self._items) > _MOST_TOKENS:
                    raise InvalidInput(f"config.pbtxt has more than {_MOST_TOKENS} parts")
            line += text.count("\n", at, match.end())
            at = match.end()

    def peek(self) -> tuple[str, str]:
        return self._items[self._at][:2] if self._at < len(self._items) else ("end", "the end")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self._at += 1
        return token

    def accept(self, marks: str) -> bool:
        kind, text = self.peek()
        if kind == "mark" and text in marks:
            self._at += 1
            return True
        return False

    def fail(self, wanted: str) -> InvalidInput:
        line = self._items[min(self._at, len(self._items) - 1)][2] if self._items else 1
        return InvalidInput(f"config.pbtxt line {line}: {self.peek()[1][:40]!r} where {wanted} belongs")


def _message(tokens: _Tokens, close: str, depth: int) -> Message:
    if depth > _DEEPEST:
        raise InvalidInput(f"config.pbtxt is nested more than {_DEEPEST} deep")
    message = Message()
    while True:
        kind, name = tokens.peek()
        if close and kind == "mark" and name == close:
            tokens.take()
            return message
        if kind == "end" and not close:
            return message
        if kind != "word":
            raise tokens.fail(f"a field's name or {close!r}" if close else "a field's name")
        tokens.take()
        values = message.fields.setdefault(name, [])
        colon = tokens.accept(":")
        if tokens.accept("["):
            if not tokens.accept("]"):
                values.append(_value(tokens, True, depth))
                while tokens.accept(","):
                    if tokens.accept("]"):
                        break
                    values.append(_value(tokens, True, depth))
                else:
                    if not tokens.accept("]"):
                        raise tokens.fail("',' or ']'")
        else:
            values.append(_value(tokens, colon, depth))
        tokens.accept(",;")


def _value(tokens: _Tokens, plain: bool, depth: int) -> str | Message:
    for opening, closing in (("{", "}"), ("<", ">")):
        if tokens.accept(opening):
            return _message(tokens, closing, depth + 1)
    kind, text = tokens.peek()
    if not plain or kind not in ("text", "word"):
        raise tokens.fail("a value")
    tokens.take()
    if kind == "word":
        return text
    whole = _unquoted(text)
    while tokens.peek()[0] == "text":  # adjacent strings are one
        whole += _unquoted(tokens.take()[1])
    return whole


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text[1:-1])
