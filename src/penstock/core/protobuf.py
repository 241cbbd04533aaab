"""Protobuf messages from a shipped FileDescriptorSet, in a descriptor pool of their own.

Generated modules would register their names in the process-wide pool, where they clash with a client's copy of the
same protocol, and they refuse to load under an older protobuf than they were made for. Descriptors do neither.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

from penstock.core.errors import InvalidInput


class MessageClass(Protocol):
    """A message type. Instances have the message's own fields, which no static type describes."""

    def __call__(self, **fields: object) -> Any: ...

    def FromString(self, data: bytes) -> Any: ...

    @property
    def DESCRIPTOR(self) -> Any: ...


class Schema:
    """The message types of one FileDescriptorSet. `files` are its FileDescriptorProtos, dependencies first."""

    def __init__(self, descriptor_set: bytes) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        self._pool = descriptor_pool.DescriptorPool()
        self._class_of = message_factory.GetMessageClass
        parsed = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set)
        self.files: tuple[bytes, ...] = tuple(file.SerializeToString() for file in parsed.file)
        for file in self.files:
            self._pool.AddSerializedFile(file)

    def message(self, name: str) -> MessageClass:
        """The class of the message with this full name, such as "inference.ModelInferRequest"."""
        made: MessageClass = self._class_of(self._pool.FindMessageTypeByName(name))
        return made


# A message inside a message costs some 90 bytes of memory and may be two bytes on the wire, so one of 20 MB made of
# nothing else became 1 GB. Large messages are therefore looked through first, where they may hold others: about 1 us a
# field, and real requests have a few dozen. Below, what may come of it is too little to care.
_LOOKED_THROUGH_FROM_BYTES = 256 << 10
_MOST_PARTS = 100_000


def parse(kind: MessageClass, data: bytes) -> Any:
    """The message in `data`.

    Raises:
        InvalidInput: `data` is no such message, or one of more than 100,000 parts.
    """
    from google.protobuf.message import DecodeError

    if len(data) > _LOOKED_THROUGH_FROM_BYTES:
        _check_parts(kind, data)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"the message cannot be read: {error}") from None


def _check_parts(kind: MessageClass, data: bytes) -> None:
    """Counts the fields of the messages that may hold messages. Raises: InvalidInput."""
    left = _MOST_PARTS
    spans = [(0, len(data), kind.DESCRIPTOR)]
    while spans:
        at, end, descriptor = spans.pop()
        fields = _messages_in(descriptor)
        while at < end:
            left -= 1
            if left < 0:
                raise InvalidInput(f"the message has more than {_MOST_PARTS} parts; send tensors in raw_input_contents")
            tag, at = _varint(data, at)
            wire_type = tag & 7
            if wire_type == 2:
                length, at = _varint(data, at)
                held = fields.get(tag >> 3)
                if held is not None and length and _messages_in(held):
                    spans.append((at, min(at + length, end), held))
                at += length
            elif wire_type == 0:
                _, at = _varint(data, at)
            elif wire_type in (1, 5):
                at += 8 if wire_type == 1 else 4
            else:  # groups, which no message here has, could hide any number of parts
                raise InvalidInput(f"the message cannot be read: wire type {wire_type}")


@functools.cache
def _messages_in(descriptor: Any) -> Mapping[int, Any]:
    """The kinds of message that a message's fields hold, by field number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}


# The most top-level fields `take_field` looks at. Requests have a few; a message made of millions of tiny ones must not
# hold the caller for the minutes that a walk in Python would take.
_MOST_FIELDS = 4096


def take_field(data: bytes, number: int) -> tuple[bytes, list[memoryview]] | None:
    """`data` without its top-level length-delimited fields of this number, and their contents as views of `data`.

    Reading a large bytes field through the message copies it twice; this copies it never. None when the walk meets
    anything unusual: then the message as a whole has to be parsed, which also finds what is wrong with it.
    Source: https://protobuf.dev/programming-guides/encoding/
    """
    view, size, at = memoryview(data), len(data), 0
    kept: list[memoryview] = []
    taken: list[memoryview] = []
    kept_from = 0
    for _ in range(_MOST_FIELDS):
        if at >= size:
            kept.append(view[kept_from:])
            return b"".join(kept), taken
        start = at
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 2:
            length, at = _varint(data, at)
            end = at + length
            if tag >> 3 == number and end <= size:
                kept.append(view[kept_from:start])
                taken.append(view[at:end])
                kept_from = end
            at = end
        elif wire_type == 0:
            _, at = _varint(data, at)
        elif wire_type == 1:
            at += 8
        elif wire_type == 5:
            at += 4
        else:
            return None
        if at > size:
            return None
    return None


def length_prefix(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a length-delimited field of this number."""
    out = bytearray()
    for value in (number << 3 | 2, length):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and where the next thing begins; past the end of `data` when it is cut off or too long."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, len(data) + 1
