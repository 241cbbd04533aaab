"""A door over plain functions: every call is answered on the loop, in a queue of one at a time, without an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from penstock.core.batches import Batches
from penstock.core.door import ModelDescription, Statistics, VersionStatus
from penstock.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
    ServableError,
    Unsupported,
)
from penstock.core.language import LanguageModel
from penstock.core.messages import Parameter, Request, Response
from penstock.core.responses import Responses
from penstock.core.servable import Signature
from penstock.core.tensor import Array, TensorSpec, parse_spec

Predict = Callable[[Mapping[str, Array], Mapping[str, Parameter]], dict[str, Array]]
Answer = Callable[[Mapping[str, Array], Mapping[str, Parameter]], Iterator[dict[str, Array]]]


@dataclass(slots=True)
class NumpyModel:
    """One model: a function of its inputs, or a generator of answers. `gate`, when set, holds every call back."""

    signature: Signature
    predict: Predict | None = None
    answer: Answer | None = None
    ready: bool = True
    gate: asyncio.Event | None = None
    statistics: Statistics = field(default_factory=lambda: Statistics("", "1"))
    seen: list[Request] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # ids of requests that came as far as the gate
    cancelled: list[str] = field(default_factory=list)  # ids of requests that left before they ran
    stopped: list[str] = field(default_factory=list)  # ids of streams that were closed before their end


def numpy_model(inputs: Mapping[str, str], outputs: Mapping[str, str | TensorSpec], **options: object) -> NumpyModel:
    """A batchable model with declared tensors; `options` are NumpyModel's."""
    signature = Signature(
        tuple(parse_spec(name, text) for name, text in inputs.items()),
        tuple(spec if isinstance(spec, TensorSpec) else parse_spec(name, spec) for name, spec in outputs.items()),
        platform="numpy",
        batchable=True,
        streaming="answer" in options,
    )
    return NumpyModel(signature, **options)  # type: ignore[arg-type]


class NumpyDoor:
    """Implements `core.door.Door`. All versions are 1."""

    def __init__(self, models: Mapping[str, NumpyModel]) -> None:
        self.served = dict(models)
        self.stopping = False
        self.loads: list[tuple[str, Mapping[str, object] | None, Mapping[str, bytes] | None]] = []
        self.trace: dict[str, object] = {"trace_level": ["OFF"], "trace_rate": "1000"}
        self.logging: dict[str, Parameter] = {"log_info": True, "log_verbose_level": 0, "log_format": "default"}
        self._change: asyncio.Future[None] | None = None
        for name, model in self.served.items():
            model.statistics.name = name

    def signature(self, model: str, version: str = "") -> Signature:
        return self._model(model, version).signature

    def submit(self, request: Request) -> asyncio.Future[Response]:
        self._check(request)
        return asyncio.ensure_future(self._predict(request))

    async def _predict(self, request: Request) -> Response:
        model = self.served[request.model]
        request.timings.submitted = time.monotonic()
        await self._pass_gate(model, request)
        model.seen.append(request)
        request.timings.dispatched = time.monotonic()
        if model.predict is None:
            raise Unsupported("the model only streams")
        try:
            outputs = model.predict(request.inputs, request.parameters)
        except (ValueError, ArithmeticError) as error:
            raise ServableError(str(error)) from error
        request.timings.finished = time.monotonic()
        request.timings.compute_infer_s = request.timings.finished - request.timings.dispatched
        model.statistics.inference_count += 1
        model.statistics.success.add(request.timings.compute_infer_s)
        return self._response(request, outputs)

    async def stream(self, request: Request) -> AsyncIterator[Response]:
        self._check(request)
        model = self.served[request.model]
        if model.answer is None:
            yield await self._predict(request)
            return
        await self._pass_gate(model, request)
        model.seen.append(request)
        done = False
        try:
            for outputs in model.answer(request.inputs, request.parameters):
                yield self._response(request, outputs)
                await asyncio.sleep(0)
            done = True
        except (ValueError, ArithmeticError) as error:
            done = True
            raise ServableError(str(error)) from error
        finally:
            if not done:
                model.stopped.append(request.id)

    async def language(self, model: str, version: str = "") -> LanguageModel:
        self._model(model, version)
        raise Unsupported(f"'{model}' is no language model")

    def batches(self) -> Batches:
        raise Unsupported("this door keeps no files and no batches")

    def responses(self) -> Responses:
        raise Unsupported("this door keeps no answers")

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return not self.stopping and all(model.ready for model in self.served.values())

    def model_ready(self, model: str, version: str = "") -> bool:
        try:
            self._model(model, version)
        except NotReady:
            return False
        return True

    def next_change(self) -> asyncio.Future[None]:
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_future()
        return self._change

    def become(self, model: str, *, ready: bool) -> None:
        """A change of the model's readiness, from any thread."""
        self.served[model].ready = ready
        if (change := self._change) is not None:
            change.get_loop().call_soon_threadsafe(lambda: change.done() or change.set_result(None))

    def models(self) -> list[str]:
        return sorted(name for name, model in self.served.items() if model.ready)

    def describe(self, model: str, version: str = "") -> ModelDescription:
        signature = self._model(model, version).signature
        config = {"max_batch_size": 8, "batch": True, "batch_delay_s": 0.001, "workers": 1, "versions": "latest:1"}
        return ModelDescription(model, 1, (1,), {}, signature, config, "inline", f"{model}.npy", "0" * 64)

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        if not model:
            return [served.statistics for served in self.served.values()]
        return [self._model(model, version).statistics]

    async def index(self) -> list[VersionStatus]:
        return [
            VersionStatus(name, "1", "READY" if model.ready else "UNAVAILABLE", "" if model.ready else "unloaded")
            for name, model in self.served.items()
        ]

    async def load(
        self, model: str, config: Mapping[str, object] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        if model not in self.served:
            raise NotFound(f"no model '{model}'")
        self.loads.append((model, config, files))
        self.served[model].ready = True

    async def unload(self, model: str) -> None:
        if model not in self.served:
            raise NotFound(f"no model '{model}'")
        self.served[model].ready = False

    async def trace_settings(self, model: str = "", update: Mapping[str, object] | None = None) -> Mapping[str, object]:
        self.trace.update(update or {})
        return self.trace

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]:
        self.logging.update(update or {})
        return self.logging

    async def metrics(self) -> bytes:
        return b""

    def _model(self, name: str, version: str) -> NumpyModel:
        model = self.served.get(name)
        if model is None or version not in ("", "1"):
            raise NotFound(f"no model '{name}'" + (f" version {version}" if version else ""))
        if not model.ready:
            raise NotReady(f"model '{name}' is not ready", retry_after_s=1.5)
        return model

    def _check(self, request: Request) -> None:
        signature = self._model(request.model, request.version).signature
        known = {spec.name: spec for spec in signature.inputs}
        for name, array in request.inputs.items():
            if not known:
                break  # a model that declares nothing takes anything
            if name not in known:
                raise InvalidInput(f"no input '{name}'")
            known[name].check(array)
        for name in request.outputs:
            if name not in {spec.name for spec in signature.outputs}:
                raise InvalidInput(f"no output '{name}'")
        if missing := set(known) - set(request.inputs):
            raise InvalidInput(f"missing inputs {sorted(missing)}")

    @staticmethod
    async def _pass_gate(model: NumpyModel, request: Request) -> None:
        if model.gate is None:
            return
        model.waiting.append(request.id)
        try:
            async with asyncio.timeout_at(
                None
                if request.deadline == float("inf")
                else asyncio.get_running_loop().time() + request.deadline - time.monotonic()
            ):
                await model.gate.wait()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed in the queue") from None
        except asyncio.CancelledError:
            model.cancelled.append(request.id)
            raise
        if request.id in model.cancelled:
            raise Cancelled("the caller left")

    def _response(self, request: Request, outputs: dict[str, Array]) -> Response:
        names = request.outputs or tuple(spec.name for spec in self.served[request.model].signature.outputs)
        return Response(
            request.model, "1", {name: outputs[name] for name in names}, request.id, timings=request.timings
        )
