"""Servables that behave as user code does at its worst. Loaded in worker processes through the plug `unruly:plug`;
the option `kind` chooses one."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.servable import LoadContext, Signature
from penstock.core.tensor import TensorSpec

X = TensorSpec("x", "FP32", (-1, -1))
Y = TensorSpec("y", "FP32", (-1, -1))


class Double:
    signature = Signature((X,), (Y,), "test", batchable=True)

    def predict(self, inputs, parameters):
        return {"y": inputs["x"] * 2}

    def close(self):
        print("closed", flush=True)


class Obedient(Double):
    """Does what the parameter `do` says."""

    def predict(self, inputs, parameters):
        x, do = inputs["x"], parameters.get("do", "")
        if do == "segfault":
            ctypes.string_at(0)
        elif do == "exit":
            os._exit(7)
        elif do == "system_exit":
            sys.exit(3)
        elif do == "raise":
            raise ValueError("the sky is green")
        elif do == "invalid":
            raise InvalidInput("x must be small")
        elif do == "interrupt":
            raise KeyboardInterrupt
        elif do == "sleep":
            time.sleep(parameters["s"])
        elif do == "spin":
            while True:
                pass
        elif do == "hold_lock":
            while True:  # a signal ends one sleep
                ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter lock during the call
        elif do == "print":
            for index in range(parameters["lines"]):
                print(f"line {index} " + "x" * parameters.get("width", 0), flush=True)
        elif do == "grandchild":
            if os.fork() == 0:
                signal.pause()
            os._exit(0)
        elif do in ("garbage", "hang_up"):
            doorbell = int(sys.argv[1])
            if do == "garbage":
                os.write(doorbell, b"garbage" * 10)
            else:
                os.close(doorbell)
            time.sleep(100)
        elif do == "none":
            return None
        elif do == "missing":
            return {"z": x}
        elif do == "rows":
            return {"y": x[:-1]}
        elif do == "text":
            return {"y": np.array([["a"]] * len(x))}
        elif do == "float64":
            return {"y": (x * 2).astype("f8")}
        elif do == "write":
            x[:] = 0
        elif do == "threads":
            return {"y": np.full((len(x), 1), float(os.environ["OMP_NUM_THREADS"]), "f4")}
        return {"y": x * 2}


class Echo:
    """Any tensors, as they are."""

    signature = Signature((), (), "test", batchable=False, metadata={"dynamic": "true"})

    def predict(self, inputs, parameters):
        return dict(inputs)

    def close(self): ...


class Streamer:
    """`n` items of `width`; notes in the file `log` how many it made, and when it was closed."""

    signature = Signature((X,), (Y,), "test", batchable=False, streaming=True)

    def predict(self, inputs, parameters):
        return {"y": inputs["x"] * 2}

    def answer(self, inputs, parameters):
        made = 0
        try:
            for made in range(1, parameters["n"] + 1):
                yield {"y": np.full((1, parameters.get("width", 1)), float(made - 1), "f4")}
                if made == parameters.get("raise_after"):
                    raise RuntimeError("lost the thread")
                if made == parameters.get("die_after"):
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            if "log" in parameters:
                Path(parameters["log"]).write_text(str(made))

    def close(self): ...


class AsyncStreamer(Streamer):
    signature = Signature((X,), (Y,), "test", batchable=False, streaming=True, concurrency=4)

    async def answer(self, inputs, parameters):
        for item in super().answer(inputs, parameters):
            await asyncio.sleep(0.001)
            yield item


class Together:
    """Answers only when `n` batches are under way at once."""

    signature = Signature((X,), (Y,), "test", batchable=True, concurrency=8)

    def __init__(self):
        self.here, self.all_here = 0, None

    async def predict(self, inputs, parameters):
        self.all_here = self.all_here or asyncio.Event()
        self.here += 1
        if self.here == parameters["n"]:
            self.all_here.set()
        await self.all_here.wait()
        if parameters.get("do") == "raise":
            raise ValueError("async and wrong")
        return {"y": inputs["x"] * 2}

    def close(self): ...


class Coroutine(Double):
    """An ordinary model whose predict happens to be a coroutine."""

    async def predict(self, inputs, parameters):
        await asyncio.sleep(0)
        return {"y": inputs["x"] * 2}


def _raise(error):
    raise error


def _chatty_death():
    print("about to go", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


KINDS = {
    "double": Double,
    "obedient": Obedient,
    "echo": Echo,
    "streamer": Streamer,
    "async_streamer": AsyncStreamer,
    "together": Together,
    "coroutine": Coroutine,
    "load_error": lambda: _raise(LoadError("no such layer")),
    "load_raise": lambda: _raise(KeyError("weights")),
    "load_exit": lambda: sys.exit(5),
    "load_death": _chatty_death,
    "load_hang": lambda: time.sleep(1000),
}


class Unruly:
    name = "unruly"
    inline_safe = False
    preload = ()

    def recognises(self, path: Path) -> bool:
        return False

    def load(self, path: Path, context: LoadContext):
        return KINDS[str(context.options["kind"])]()


plug = Unruly()
