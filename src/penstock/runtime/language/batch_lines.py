"""The lines of a batch's files, in OpenAI's form: requests in, answers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from penstock.core.batches import Fault, LineAnswer, LineUsage

MOST_LINES: Final = 50_000  # OpenAI's limit
LONGEST_ID: Final = 512  # characters of a custom_id
_MOST_FAULTS: Final = 20  # told of one file


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Answered(msgspec.Struct):
    custom_id: str


@dataclass(frozen=True, slots=True)
class Line:
    """One request: the caller's own name of it, and its body."""

    name: str
    body: bytes


_DECODER: Final = msgspec.json.Decoder(_Line)


def read_lines(content: bytes, endpoint: str) -> tuple[list[Line], list[Fault]]:
    """The requests of a file; they are worth something only when there is no fault."""
    lines: list[Line] = []
    faults: list[Fault] = []
    names: set[str] = set()
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(lines) >= MOST_LINES:
            faults.append(Fault("too_many_tasks", f"a batch has at most {MOST_LINES} requests", number))
            break
        fault = _read(text, endpoint, number, names, lines)
        if fault is not None:
            faults.append(fault)
            if len(faults) >= _MOST_FAULTS:
                break
    if not lines and not faults:
        faults.append(Fault("empty_file", "the file holds no request"))
    return lines, faults


def _read(text: bytes, endpoint: str, number: int, names: set[str], lines: list[Line]) -> Fault | None:
    try:
        read = _DECODER.decode(text)
    except msgspec.ValidationError as error:
        return Fault("invalid_request", f"a line has custom_id, method, url and body: {error}", number)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Fault("invalid_json_line", "this line is not a JSON object", number)
    if not 0 < len(read.custom_id) <= LONGEST_ID:
        return Fault("invalid_custom_id", f"custom_id has 1 to {LONGEST_ID} characters", number, "custom_id")
    if read.custom_id in names:
        return Fault("duplicate_custom_id", "another line has the same custom_id", number, "custom_id")
    if read.method != "POST":
        return Fault("invalid_method", "method must be POST", number, "method")
    if read.url != endpoint:
        return Fault("mismatched_url", f"url must be the batch's endpoint, {endpoint}", number, "url")
    body = bytes(read.body).strip()
    if not body.startswith(b"{"):
        return Fault("invalid_body", "body must be an object", number, "body")
    names.add(read.custom_id)
    lines.append(Line(read.custom_id, body))
    return None


def written(id: str, line: Line, answer: LineAnswer) -> bytes:
    """The line of an output or error file for an answer."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": msgspec.Raw(answer.body)}
    return _encode(id, line, response, None)


def entry(succeeded: bool, usage: LineUsage, text: bytes) -> bytes:
    """An answer's line as a journal keeps it."""
    numbers = (usage.prompt, usage.cached, usage.completion, usage.reasoning)
    return b"%b %d %d %d %d %b" % (b"+" if succeeded else b"-", *numbers, text.rstrip(b"\n"))


def read_entry(text: bytes) -> tuple[bool, LineUsage, bytes]:
    """Whether it succeeded, its tokens, and the line without its end."""
    sign, prompt, cached, completion, reasoning, line = text.split(b" ", 5)
    return sign == b"+", LineUsage(int(prompt), int(cached), int(completion), int(reasoning)), line


def name_of(text: bytes) -> str:
    """The custom_id of an answer's line. Raises: msgspec.DecodeError."""
    return msgspec.json.decode(text, type=_Answered).custom_id


def unanswered(id: str, line: Line, code: str, message: str) -> bytes:
    """The line of an error file for a request that was never answered."""
    return _encode(id, line, None, {"code": code, "message": message})


def _encode(id: str, line: Line, response: object, error: object) -> bytes:
    return msgspec.json.encode({"id": id, "custom_id": line.name, "response": response, "error": error}) + b"\n"
