"""Files of many requests, and the work on them: what a server keeps for a caller who does not wait for it.

`caller` is whose key it was. Everybody sees only their own: what is another's is not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

WINDOW_S: Final = 24 * 3600.0  # in which a batch is answered; what is left then has expired


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is kept. Times are seconds since the epoch."""

    id: str
    name: str
    purpose: str  # "batch" was sent by the caller, "batch_output" was written here
    size_bytes: int
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a batch failed. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    parameter: str | None = None


@dataclass(frozen=True, slots=True)
class LineUsage:
    """Tokens of lines that were answered."""

    prompt: int = 0
    cached: int = 0  # of the prompt
    completion: int = 0
    reasoning: int = 0  # of the completion

    def __add__(self, other: LineUsage) -> LineUsage:
        return LineUsage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion,
                         self.reasoning + other.reasoning)  # fmt: skip


@dataclass(slots=True)
class Batch:
    """A file of requests and what became of them."""

    id: str
    endpoint: str  # the path that answers each line
    input_file: str
    created_at: int
    expires_at: int
    metadata: Mapping[str, str]
    # validating, in_progress, finalizing, completed; failed, expired, cancelling, cancelled
    status: str = "validating"
    total: int = 0
    answered: int = 0  # with success
    refused: int = 0
    output_file: str | None = None  # answers
    error_file: str | None = None  # lines that were refused or failed
    usage: LineUsage = LineUsage()
    output_keep_s: float | None = None  # how long its files are kept; None is as long as others
    faults: list[Fault] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)  # when it came to each status


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a line came to. `again_s`: nothing yet; it is worth trying again so many seconds later."""

    status: int
    body: bytes
    request_id: str = ""
    again_s: float | None = None
    usage: LineUsage = LineUsage()


class Batches(Protocol):
    """What a server keeps of files and batches. Every method raises NotFound for what this caller does not have."""

    async def add_file(self, caller: str, name: str, content: bytes, keep_s: float | None = None) -> StoredFile:
        """Keeps the file. Raises: TooLarge; QuotaExceeded, Overloaded when there is no room."""
        ...

    async def file(self, caller: str, id: str) -> StoredFile: ...

    async def files(self, caller: str) -> list[StoredFile]:
        """All, the newest first."""
        ...

    async def content(self, caller: str, id: str) -> bytes: ...

    async def remove_file(self, caller: str, id: str) -> None:
        """Raises: AlreadyExists while a batch works on it."""
        ...

    async def create(
        self, caller: str, endpoint: str, input_file: str, metadata: Mapping[str, str], keep_s: float | None = None
    ) -> Batch:
        """Begins the work. Raises: QuotaExceeded, Overloaded when too many are unfinished; NotReady at a stop."""
        ...

    async def batch(self, caller: str, id: str) -> Batch: ...

    async def listed(self, caller: str) -> list[Batch]:
        """All, the newest first."""
        ...

    async def cancel(self, caller: str, id: str) -> Batch:
        """Asks for its end. Raises: AlreadyExists when it has ended."""
        ...
