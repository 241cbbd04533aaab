"""The OpenAPI 3.1 document of a set of protocols and models. Pure."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from penstock.core.door import ModelDescription
from penstock.core.tensor import TensorSpec
from penstock.protocols import CallRoute, HttpProtocol, Route

_NAMES: Final = re.compile(r"\{(\w+)\}")
_ERROR: Final = {
    "description": "An error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
# Statuses that any inference, and any other call, may answer; what they mean stands in docs/protocols.
_FAILURES: Final = ("400", "401", "404", "413", "429", "500", "501", "503", "504")
_CALL_FAILURES: Final = ("400", "401", "404", "409", "413", "500", "501", "503")


def document(protocols: Sequence[HttpProtocol], models: Sequence[ModelDescription]) -> dict[str, object]:
    """The document. Besides the paths with `{model}` it has one path for each model and call, with an example that
    works, and the models themselves under `x-penstock-models`, which the page reads."""
    paths: dict[str, dict[str, dict[str, object]]] = {}
    for protocol in protocols:
        for route in protocol.routes():
            paths.setdefault(route.pattern, {})[route.method.lower()] = _operation(protocol, route)
    shown = [_model(protocols, model) for model in models]
    for model, entry in zip(models, shown, strict=True):
        for call in entry["calls"]:
            path = paths.setdefault(call["path"], {})
            path[call["method"].lower()] = _call(model, call)
    _make_unique([operation for path in paths.values() for operation in path.values()])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": _version(),
            "summary": "Inference on this server's models",
        },
        "tags": [{"name": protocol.title} for protocol in protocols] + [{"name": model.name} for model in models],
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            },
        },
        "x-penstock-models": shown,
    }


def _operation(protocol: HttpProtocol, route: Route) -> dict[str, object]:
    names = _NAMES.findall(route.pattern)
    operation: dict[str, object] = {
        "operationId": _identity(route.method, route.pattern),
        "summary": route.summary,
        "tags": [protocol.title],
        "responses": {"200": {"description": "Done"}},
        **route.openapi,
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    _add_failures(operation, _CALL_FAILURES if isinstance(route, CallRoute) else _FAILURES)
    if isinstance(route, CallRoute) and route.public:
        operation["security"] = []
    return operation


def _model(protocols: Sequence[HttpProtocol], model: ModelDescription) -> dict[str, Any]:
    calls = []
    for protocol in protocols:
        for route in protocol.routes():
            if isinstance(route, CallRoute) or route.example is None or _NAMES.findall(route.pattern) != ["model"]:
                continue
            calls.append(
                {
                    "protocol": protocol.title,
                    "summary": route.summary,
                    "method": route.method,
                    "path": route.pattern.replace("{model}", quote(model.name, safe="")),
                    "example": route.example(model.signature),
                    "openapi": route.openapi,
                }
            )
    signature = model.signature
    return {
        "name": model.name,
        "version": str(model.version),
        "versions": [str(version) for version in model.versions],
        "labels": {label: str(version) for label, version in model.labels.items()},
        "platform": signature.platform,
        "executor": model.executor,
        "batchable": signature.batchable,
        "streaming": signature.streaming,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
        "calls": calls,
    }


def _call(model: ModelDescription, call: dict[str, Any]) -> dict[str, object]:
    """The operation of one model's path. Takes `openapi` out of the call, which the page has no use for."""
    operation: dict[str, object] = {
        "operationId": _identity(call["method"], call["path"]),
        "summary": f"{model.name}: {call['summary']}",
        "tags": [model.name],
        "responses": {"200": {"description": "Done"}},
        **call.pop("openapi"),
    }
    takes, gives = (
        ", ".join(f"`{spec.name}` {spec.datatype} {list(spec.shape)}" for spec in specs) or "nothing"
        for specs in (model.signature.inputs, model.signature.outputs)
    )
    operation["description"] = f"Takes {takes}; gives {gives}. {operation.get('description', '')}".strip()
    body = operation.get("requestBody")
    if call["example"] is not None and isinstance(body, Mapping):
        content = dict(body["content"])
        content["application/json"] = {**content.get("application/json", {}), "example": call["example"]}
        operation["requestBody"] = {**body, "content": content}
    _add_failures(operation, _FAILURES)
    return operation


def _add_failures(operation: dict[str, object], statuses: Sequence[str]) -> None:
    responses = operation["responses"]
    assert isinstance(responses, Mapping)
    operation["responses"] = {**responses, **{status: _ERROR for status in statuses if status not in responses}}


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape, "optional": spec.optional}


def _make_unique(operations: Sequence[dict[str, object]]) -> None:
    """Numbers the later ones of equal `operationId`s: models "a-b" and "a_b" have the same."""
    seen: dict[object, int] = {}
    for operation in operations:
        identity = operation["operationId"]
        seen[identity] = seen.get(identity, 0) + 1
        if seen[identity] > 1:
            operation["operationId"] = f"{identity}__{seen[identity]}"


def _identity(method: str, pattern: str) -> str:
    return f"{method.lower()}_{re.sub(r'[^A-Za-z0-9]+', '_', pattern).strip('_') or 'root'}"


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0"
