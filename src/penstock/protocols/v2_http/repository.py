"""The model repository extension: what could be loaded, loading with overrides, unloading."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import orjson

from penstock.core.door import Door
from penstock.core.errors import InvalidInput, Unsupported
from penstock.core.json_body import read_json, read_object
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, Route
from penstock.protocols.v2_http.schema import LOAD, UNLOAD

_FILE: Final = "file:"
_CONFIG: Final = msgspec.json.Decoder(dict[str, object])


def routes() -> Sequence[Route]:
    """The routes of this module. Triton's form with a repository's name is refused: there is one repository."""
    found: list[Route] = []
    for path in ("/v2/repository", "/v2/repository/{repository}"):
        found += [
            CallRoute("POST", f"{path}/index", index, "Every model and version that is known"),
            CallRoute("POST", f"{path}/models/{{model}}/load", load, "Load or reload a model", openapi=LOAD),
            CallRoute("POST", f"{path}/models/{{model}}/unload", unload, "Unload a model", openapi=UNLOAD),
        ]
    return found


async def index(http: HttpRequest, door: Door) -> HttpResponse:
    """The index, an array; of ready versions only with `{"ready": true}`."""
    _no_name(http)
    only_ready = read_object(http.body).get("ready")
    if only_ready not in (None, True, False):
        raise InvalidInput(f"ready is {only_ready!r}, it must be true or false")
    lines = [line for line in await door.index() if not only_ready or line.state == "READY"]
    return HttpResponse(
        200,
        orjson.dumps(
            [
                {"name": line.name, "version": line.version, "state": line.state, "reason": line.reason}
                if line.state or line.version
                else {"name": line.name}
                for line in lines
            ]
        ),
    )


async def load(http: HttpRequest, door: Door) -> HttpResponse:
    """Answers when the model does."""
    _no_name(http)
    parameters = _parameters(http)
    config: Mapping[str, object] | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == "config":
            config = _config(value)
        elif key.startswith(_FILE):
            files[_relative(key[len(_FILE) :])] = _contents(key, value)
        elif value is not None:
            raise InvalidInput(f"load has no parameter '{key[:80]}'; it has config and file:<path>")
    if files and config is None:
        raise InvalidInput("files were sent without the parameter config, which they need beside them")
    model = http.match["model"]
    await door.load(model, config, files or None)
    return HttpResponse(200, orjson.dumps({"name": model, "load": True}))


async def unload(http: HttpRequest, door: Door) -> HttpResponse:
    """Answers at once; requests in flight are finished."""
    _no_name(http)
    for key, value in _parameters(http).items():
        # Nothing depends on another model here, so both values mean the same.
        if key != "unload_dependents" or value not in (None, True, False):
            raise InvalidInput(f"unload has no parameter '{key[:80]}' of this value; it has unload_dependents")
    model = http.match["model"]
    await door.unload(model)
    return HttpResponse(200, orjson.dumps({"name": model, "unload": True}))


def _no_name(http: HttpRequest) -> None:
    if "repository" in http.match:
        raise Unsupported("this server has one repository without a name; leave its name out of the path")


def _parameters(http: HttpRequest) -> Mapping[str, object]:
    parameters = read_object(http.body).get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters must be an object")
    return parameters


def _config(value: object) -> Mapping[str, object]:
    if isinstance(value, dict):  # not Triton's form, but what a person writes first
        return value
    if not isinstance(value, str):
        raise InvalidInput("the parameter config must be the text of a JSON object")
    return read_json(value.encode(), _CONFIG, "the parameter config")


def _relative(path: str) -> str:
    """Raises: InvalidInput. Whoever writes the file checks again; here only what can never be right is refused."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(f"'{path[:80]}' is no path inside a model's folder")
    return path


def _contents(key: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidInput(f"the parameter '{key[:80]}' must be base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"the parameter '{key[:80]}' is not valid base64") from None
