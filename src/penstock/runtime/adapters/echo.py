"""Answers with its inputs. The in-memory twin of a model, for tests and for measuring the server itself.

Without declared inputs it takes anything: an empty `inputs` with metadata `dynamic = "true"` says so.
With the option `scripted` a request's parameters may ask for a delay, a failure, or the death of the worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from penstock.core.declare import rows_along_axis_0
from penstock.core.errors import InvalidInput, LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import NUMPY_OF
from penstock.runtime.frameworks import check_options

OPTIONS = ("delay_s", "load_delay_s", "fail", "fail_load", "stream", "batch", "scripted")


class Echo:
    """The servable. `delay_s` is slept, not computed, once per call or stream item."""

    def __init__(self, context: LoadContext) -> None:
        options = context.options
        self._delay_s = float(options.get("delay_s", 0.0))
        self._fail = str(options.get("fail", ""))
        self._count = int(options.get("stream", 0))
        self._scripted = bool(options.get("scripted", False))
        specs = context.inputs
        batchable = not specs or rows_along_axis_0(*specs)
        self.signature = Signature(
            inputs=specs,
            outputs=specs,
            platform="echo",
            batchable=batchable and bool(options.get("batch", True)) and not self._count,
            streaming=self._count > 0,
            inline_safe=not self._delay_s and not self._scripted and not self._count,
            metadata={} if specs else {"dynamic": "true"},
        )

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        self._act(parameters)
        return dict(inputs)

    def answer(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Iterator[Tensors]:
        """The inputs, `stream` times (a request's `echo_stream` when scripted)."""
        count = int(parameters.get("echo_stream", self._count)) if self._scripted else self._count
        for _ in range(count or 1):
            self._act(parameters)
            yield dict(inputs)

    def close(self) -> None:
        """Nothing to free."""

    def _act(self, parameters: Mapping[str, Parameter]) -> None:
        delay_s, fail = self._delay_s, self._fail
        if self._scripted:
            delay_s = float(parameters.get("echo_delay_s", delay_s))
            fail = str(parameters.get("echo_fail", fail))
            _die(str(parameters.get("echo_die", "")))
        if delay_s:
            time.sleep(delay_s)
        if fail.startswith("invalid:"):
            raise InvalidInput(fail.removeprefix("invalid:").strip())
        if fail:
            raise RuntimeError(fail)


def _die(how: str) -> None:
    """Ends or stops this worker the way that native code or the kernel would."""
    if how == "exit":
        os._exit(3)
    elif how in ("SEGV", "KILL", "STOP", "ABRT"):
        os.kill(os.getpid(), getattr(signal, f"SIG{how}"))
    elif how == "hang":
        while True:
            time.sleep(3600)
    elif how:
        raise InvalidInput(f"echo_die = {how!r}: write exit, SEGV, KILL, STOP, ABRT or hang")


class EchoAdapter:
    """`penstock serve echo`."""

    name = "echo"
    inline_safe = True
    preload: tuple[str, ...] = ()

    def recognises(self, path: Path) -> bool:
        return str(path) == "echo"

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        if unknown := [spec.datatype for spec in context.inputs if spec.datatype not in NUMPY_OF]:
            raise LoadError(f"unknown datatype {unknown[0]}")
        if context.options.get("load_delay_s"):
            time.sleep(float(context.options["load_delay_s"]))
        if context.options.get("fail_load"):
            raise LoadError(f"echo was told to fail: {context.options['fail_load']}")
        return Echo(context)


plug = EchoAdapter()
