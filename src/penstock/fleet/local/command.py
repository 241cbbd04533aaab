"""What a replica is started with: its configuration file and its command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.fleet.spec import Run

# Where a replica listens and who may call it is the platform's: routers reach it in clear text on loopback.
_PLATFORMS = frozenset(
    {
        "host", "http_port", "grpc_port", "grpc", "api_key", "api_key_file", "allow_anonymous", "tls_cert", "tls_key",
        "tls_client_ca", "lame_duck_s", "log_format",
    }
)  # fmt: skip
_PLATFORMS_OF_MODEL = frozenset({"name", "path", "trust"})

# The driver ends a replica when its own time of grace is over, which may be another at each stop. Until then the
# replica itself never cuts a request.
_GRACE_S = 3600.0
_LEAST_SHARE = 1e-6  # of a GPU: the smallest that is written


def configuration(
    name: str, run: Run, path: Path, gpu_shares: Mapping[int, float], content: Mapping[str, str],
    defaults: Mapping[str, object],
) -> str:  # fmt: skip
    """The `penstock.toml` of one replica. `path` is what it serves, `content` the only one that it may have;
    `defaults` are model options that hold where the run sets none.

    Raises:
        InvalidInput: the run sets what only the platform may.
    """
    for key in run.server:
        if key in _PLATFORMS:
            raise InvalidInput(f"server.{key} is the platform's to set; leave it out")
    for key in run.options:
        if key in _PLATFORMS_OF_MODEL:
            raise InvalidInput(f"options.{key} is the platform's to set; leave it out")
    if gpu_shares and "devices" in run.options:
        raise InvalidInput("gpu and options.devices exclude each other: with gpu, the platform picks the devices")
    server: dict[str, object] = {
        # A revision does not change under its number: what is new in the folder is a new revision's.
        "model_control": "none",
        "grace_s": _GRACE_S,
        **run.server,
        "host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "log_format": "json", "lame_duck_s": 0,
    }  # fmt: skip
    model: dict[str, object] = {**defaults, **_on_gpus(gpu_shares), **run.options, "path": str(path)}
    if versions := {key: digest for key, digest in content.items() if key.isdecimal()}:
        model["versions"] = ",".join(versions)
        model["sha256"] = versions
    if run.trust:
        model["trust"] = True
    if run.graph:
        model.setdefault("adapter", "graph")
    return "\n".join([*_table("server", server), *_table(f"models.{_text(name)}", model)]) + "\n"


def command(python: Path, config: Path) -> Sequence[str]:
    """The command line; it holds nothing that is anybody's secret. -P: the working directory shadows no module."""
    return [str(python), "-P", "-m", "penstock.cli", "serve", "--config", str(config)]


def _on_gpus(shares: Mapping[int, float]) -> dict[str, object]:
    if not shares:
        return {}
    devices = [
        f"cuda:{index}" if share >= 1 else f"cuda:{index}*{max(share, _LEAST_SHARE):.6f}".rstrip("0")
        for index, share in sorted(shares.items())
    ]
    # Left to itself a runtime fills a device with workers; the rest of the device is somebody else's.
    return {"devices": devices, "workers": len(devices)}


def _table(title: str, values: Mapping[str, object]) -> list[str]:
    return [f"[{title}]", *(f"{_text(key)} = {_toml(value)}" for key, value in values.items() if value is not None)]


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Mapping():
            return "{" + ", ".join(f"{_text(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
    return _text(str(value))


def _text(value: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, but TOML knows no halves of characters and no bare DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
