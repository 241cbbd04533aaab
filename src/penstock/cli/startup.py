"""The lines a server prints once it is ready: where each model answers, and a call to try."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.core.language import KIND
from penstock.core.tensor import TensorSpec, element_count
from penstock.telemetry.outlet import silence

if TYPE_CHECKING:
    from penstock.core.door import ModelDescription
    from penstock.runtime.options import ServerOptions
    from penstock.runtime.server import ServerStatus

# Beyond this many values a call does not fit on a command line that anybody would read.
SHORT_ENOUGH = 256


def announce(status: ServerStatus, options: ServerOptions) -> None:
    """Prints one line per ready model and a call that works: as text on a terminal, as JSON lines otherwise, or as
    `log_format` says. A server whose lines nobody can read serves all the same."""
    try:
        _print(status, options)
    except OSError:  # a full disk, or a pipe without a reader
        silence(sys.stdout, 1)


def _print(status: ServerStatus, options: ServerOptions) -> None:
    if options.log_format == "text" or (options.log_format == "auto" and sys.stdout.isatty()):
        _print_for_people(status, options)
        return
    for model in status.models:
        line = {"event": "ready", **describe(status, model), "sha256": status.sha256[model.name]}
        print(json.dumps(line), flush=True)
    serving = {"event": "serving", "http": status.http_url, "grpc": status.grpc_address or "", "pid": status.pid}
    print(json.dumps(serving), flush=True)


def _print_for_people(status: ServerStatus, options: ServerOptions) -> None:
    # Imported here: it is a fifth of a start, and of no use to those whose lines a program reads.
    from rich.markup import escape

    from penstock.cli.output import out

    for model in status.models:
        line = describe(status, model)
        out().print(
            f"[bold green]ready[/]  [bold]{escape(str(line['model']))}@{line['version']}[/]  "
            f"{escape(_summary(line))}  {line['http']}" + (f"  grpc {line['grpc']}" if line["grpc"] else "")
        )
    if calls := [call for model in status.models if (call := call_of(status.http_url, model, options))]:
        out().print(f"[dim]try[/]    {escape(calls[0])}")


def _summary(line: Mapping[str, object]) -> str:
    """What runs a model, in a few words."""
    if "engine" not in line:
        return f"{line['adapter']}  {line['executor']}"
    return "  ".join(str(word) for word in (line["engine"], line["precision"], f"context {line['context']}") if word)


def describe(status: ServerStatus, model: ModelDescription) -> dict[str, object]:
    """What one ready line says. Language models are asked as OpenAI's are, and by no tensors."""
    if (told := model.signature.metadata.get(KIND)) is not None:
        info = json.loads(told)
        return {
            "model": model.name, "version": model.version, "adapter": str(model.config.get("adapter", "")),
            "executor": model.executor, "engine": info["engine"], "precision": info["precision"],
            "context": info["context_tokens"], "note": info["note"], "http": f"{status.http_url}/v1", "grpc": "",
        }  # fmt: skip
    return {
        "model": model.name,
        "version": model.version,
        "adapter": str(model.config.get("adapter", "")) or model.signature.platform,
        "executor": model.executor,
        "http": f"{status.http_url}/v2/models/{model.name}/infer",
        "grpc": status.grpc_address or "",
    }


def call_of(http_url: str, model: ModelDescription, options: ServerOptions) -> str:
    """A command that gets an answer: curl with made-up values, or `penstock predict` where they would be too many.
    Empty for a model that declares no inputs: nobody knows what it takes."""
    language = model.signature.metadata.get(KIND)
    specs = [spec for spec in model.signature.inputs if not spec.optional]
    if not specs and language is None:
        return ""
    http_url = http_url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")  # where one can call
    parts = ["curl", "-s"]
    if options.tls_cert is not None:
        parts += ["--cacert", options.tls_cert]
    header = ""
    if options.api_key is not None or options.api_key_file is not None:
        header = ' -H "Authorization: Bearer $PENSTOCK_API_KEY"'  # in double quotes: the shell fills in the key
    if language is not None:
        asked: dict[str, object] = {"model": model.name}
        route = "chat/completions" if json.loads(language)["generates"] else "embeddings"
        asked |= {"messages": [{"role": "user", "content": "Hello!"}]} if route[0] == "c" else {"input": "Hello!"}
        return shlex.join([*parts, f"{http_url}/v1/{route}"]) + header + " -d " + shlex.quote(json.dumps(asked))
    if sum(element_count(concrete(spec)) for spec in specs) > SHORT_ENOUGH:
        return shlex.join(["penstock", "predict", model.name, "--made-up", "--url", http_url])
    body = json.dumps({"inputs": [example(spec) for spec in specs]}, separators=(",", ":"))
    return shlex.join([*parts, f"{http_url}/v2/models/{model.name}/infer"]) + header + " -d " + shlex.quote(body)


def concrete(spec: TensorSpec) -> tuple[int, ...]:
    """The smallest shape that fits: every axis of any length is 1."""
    return tuple(1 if size < 0 else size for size in spec.shape)


def example(spec: TensorSpec) -> Mapping[str, Any]:
    """A V2 JSON input of zeros, or of short texts."""
    values: dict[str, object] = {"BYTES": "text", "BOOL": False}
    shape = concrete(spec)
    value = values.get(spec.datatype, 0)
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [value] * element_count(shape)}
