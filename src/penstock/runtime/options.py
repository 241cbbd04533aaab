"""The runtime's options. One dataclass for the server, one for each model; see `config` for where values come from.

The checks below each dataclass are about options together: an option that cannot take effect beside another one is
refused, because a setting that silently does nothing is found out in production.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.config import Resolved, option
from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput
from penstock.core.messages import Parameter
from penstock.core.tensor import parse_spec


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One server: its listeners, its limits and how it stops. File table `[server]`, environment `PENSTOCK_*`."""

    host: str = option("127.0.0.1", "Address to listen on. Anything but loopback needs an API key.")
    http_port: int = option(8080, "HTTP port; 0 takes a free one.", minimum=0, maximum=65535)
    grpc_port: int = option(8081, "gRPC port; 0 takes a free one.", minimum=0, maximum=65535)
    grpc: bool = option(True, "Listen for gRPC.")
    fronts: int = option(
        1,
        "Front processes that share both ports and the workers; each holds inline models itself.",
        minimum=1,
        maximum=1024,
    )
    api_key: str | None = option(None, "Key that clients send as `Authorization: Bearer …`.", secret=True)
    api_key_file: str | None = option(
        None,
        "File with one API key per line; or NAME.toml with a table for each caller: its key, and what it may use of "
        "language models.",
    )
    allow_anonymous: bool = option(False, "Allow a non-loopback listener without an API key.")
    tls_cert: str | None = option(None, "Certificate chain (PEM) for both ports.")
    tls_key: str | None = option(None, "Private key (PEM) for both ports.")
    tls_client_ca: str | None = option(None, "CA (PEM) that client certificates must come from (mutual TLS).")
    max_body_bytes: int = option(256 << 20, "Largest request body.", unit="bytes", minimum=1)
    max_header_bytes: int = option(64 << 10, "Largest request head.", unit="bytes", minimum=256)
    max_json_depth: int = option(64, "Deepest nesting of JSON.", minimum=4, maximum=1000)
    max_tensor_bytes: int = option(1 << 30, "Largest single tensor.", unit="bytes", minimum=1)
    max_decompressed_bytes: int = option(256 << 20, "Largest body after decompression.", unit="bytes", minimum=1)
    max_connections: int = option(10_000, "Open HTTP connections; more are refused with 503.", minimum=1)
    header_timeout_s: float = option(10.0, "Time to send a request's head.", unit="s", minimum=0.01)
    body_timeout_s: float = option(60.0, "Time to send a request's body.", unit="s", minimum=0.01)
    keep_alive_s: float = option(75.0, "Time an idle connection is kept.", unit="s", minimum=0)
    lame_duck_s: float = option(
        0.0, "Time between not-ready and closing the listeners after SIGTERM.", unit="s", minimum=0
    )
    grpc_connection_age_s: float | None = option(
        None,
        "Age at which a gRPC connection is asked to be made anew, so that its caller finds other servers; calls on it "
        "finish. Unset is a third of lame_duck_s, or no limit without one.",
        unit="s",
        minimum=0.1,
    )
    grace_s: float = option(30.0, "Time for requests in flight to finish after SIGTERM.", unit="s", minimum=0)
    model_control: str = option(
        "poll", "Who decides what is loaded: the files once, the files polled, or calls.",
        choices=("none", "poll", "explicit"),
    )  # fmt: skip
    poll_s: float = option(2.0, "Time between looks at the model folders.", unit="s", minimum=0.05)
    models_memory_bytes: int | None = option(
        None,
        "Memory for all loaded models together, as measured. Those used least recently give theirs back when another "
        "one is asked for, and are loaded again by their next request; fronts hold no copies then.",
        unit="bytes",
        minimum=1 << 20,
    )
    idle_unload_s: float | None = option(
        None, "Time without a request after which a model gives its memory back, until its next request.",
        unit="s", minimum=0.1,
    )  # fmt: skip
    load_models: tuple[str, ...] = option((), "With explicit control: models to load at the start; `*` is all.")
    accept_code: bool = option(
        False,
        "With explicit control: let load calls bring Python code, which can do anything, and graphs that ask other "
        "servers.",
    )
    timing_headers: bool = option(False, "Put the time split into a Server-Timing header of every answer.")
    access_log: bool = option(False, "Log a line for every request.")
    trace_endpoint: str | None = option(
        None, "OTLP/HTTP address that spans are sent to, such as http://127.0.0.1:4318/v1/traces."
    )
    trace_sampling: float = option(
        0.01, "Share of the requests without a trace of their own that begin one.", minimum=0, maximum=1
    )
    state: str | None = option(
        None,
        "Folder of files, batches and stored responses (OpenAI's API), which are there again after a restart; unset "
        "keeps them in memory.",
    )
    log_format: str = option(
        "auto", "Log and ready lines: text on a terminal, else JSON.", choices=("auto", "text", "json")
    )
    log_level: str = option("info", "Least level logged.", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """One model. File table `[models.NAME]`; defaults for all models in `[defaults]`, flags and `PENSTOCK_MODEL_*`."""

    name: str = option("", "Public name; empty takes the file's or folder's.", individual=True)
    path: str = option("", "A model file, a folder of numbered versions, or `file.py:Name`.", individual=True)
    adapter: str = option("", "Adapter; empty recognises the file.")
    executor: str = option(
        "auto", "Where batches run: in the front's loop, in worker processes, or as warm-up measures.",
        choices=("auto", "inline", "process"),
    )  # fmt: skip
    workers: int | None = option(
        None, "Worker processes; unset is by kind of model and cores.", minimum=1, maximum=1024
    )
    max_workers: int | None = option(
        None,
        "Worker processes while there is load for them: one is added when requests wait 0.1 s for a free one, and goes "
        "when it is not needed; never fewer than `workers`, which is 1 then if unset.",
        minimum=2,
        maximum=1024,
    )
    threads: int | None = option(
        None, "Compute threads per worker; unset shares the cores among the workers.", minimum=1, maximum=1024
    )
    borrow_threads: bool = option(True, "Let a batch use every core while no other worker computes.")
    devices: tuple[str, ...] = option(("cpu",), "Devices, dealt to the workers in turn: `cpu`, `cuda:0`, `cuda:0*0.5`.")
    batch: bool = option(True, "Join requests along axis 0 when the model allows.")
    max_batch_size: int = option(64, "Most rows in one batch.", unit="rows", minimum=1)
    batch_delay_s: float = option(0.0, "Time a free worker waits for a fuller batch.", unit="s", minimum=0, maximum=60)
    batch_sizes: tuple[int, ...] = option(
        (), "Allowed batch sizes, ascending; batches are padded up to one.", unit="rows", minimum=1
    )
    max_queue: int = option(2048, "Most requests waiting; more are refused.", unit="requests", minimum=0)
    shed: bool = option(
        True, "Under lasting overload keep the queue short and refuse the rest at once, instead of filling `max_queue`."
    )  # fmt: skip
    timeout_s: float = option(60.0, "Deadline of requests that bring none.", unit="s", minimum=0.001)
    load_timeout_s: float = option(300.0, "Time to load and warm a version.", unit="s", minimum=0.1)
    hang_s: float = option(
        10.0, "Silence of a worker, or time beyond its batch's deadline and `timeout_s`, until it is replaced.",
        unit="s", minimum=0.1,
    )  # fmt: skip
    max_memory_bytes: int | None = option(
        None, "Memory that one worker may hold; one that wants more is ended, and replaced.",
        unit="bytes", minimum=1,
    )  # fmt: skip
    versions: str = option("latest:1", "Versions to serve: `latest:N`, `all`, or numbers `3,4`.")
    keep_previous_s: float = option(
        60.0, "Time a version stays loaded after a switch to another, so that going back takes no load.",
        unit="s", minimum=0, maximum=86_400,
    )  # fmt: skip
    labels: Mapping[str, int] = option({}, "Names for versions, such as `stable = 3`.", individual=True)
    sha256: Mapping[str, str] = option(
        {}, 'Expected SHA-256 by version, such as `3 = "9f86d0…"`; any other content is refused.', individual=True
    )
    trust: bool = option(
        False, "Allow this model's pickled files (they can run any code, in the worker).", individual=True
    )
    warm_up: bool = option(True, "Answer made-up inputs before taking traffic; needs inputs of known type.")
    inputs: Mapping[str, str] = option({}, 'Declared inputs, such as `x = "f4[n, 4]"`.', individual=True)
    outputs: Mapping[str, str] = option({}, "Declared outputs.", individual=True)
    options: Mapping[str, Parameter] = option({}, "Options of the adapter.", individual=True)


def check_server(server: Resolved[ServerOptions]) -> None:
    """Nothing, when the options fit together.

    Raises:
        InvalidInput: an option has no effect beside the others, or is unsafe without another; all such are listed.
    """
    _raise("server", list(_server_faults(server)))


def check_model(model: Resolved[ModelOptions]) -> None:
    """Nothing, when the options fit together; whether the files exist is not looked at.

    Raises:
        InvalidInput: an option has no effect beside the others, or cannot be read; all such are listed.
    """
    _raise(f"model '{model.value.name or model.value.path}'", list(_model_faults(model)))


def _raise(what: str, faults: list[str]) -> None:
    if faults:
        raise InvalidInput(f"{what}: " + "; ".join(faults))


def _server_faults(server: Resolved[ServerOptions]) -> Iterator[str]:
    options, origin, given = server.value, server.origins, server.given
    key = options.api_key is not None or options.api_key_file is not None
    if not is_loopback(options.host) and not key and not options.allow_anonymous:
        yield (
            f"host {options.host} ({origin['host']}) can be reached from other machines and there is no API key; "
            "set api_key or api_key_file, or say allow_anonymous"
        )
    if options.allow_anonymous and key:
        yield "allow_anonymous has no effect beside an API key; remove one of the two"
    if options.allow_anonymous and is_loopback(options.host):
        yield f"allow_anonymous has no effect on the loopback address {options.host}; remove it, or set host"
    if options.api_key == "":
        yield "api_key is empty; remove it or give a key"
    if given("trace_sampling") and options.trace_endpoint is None:
        yield f"trace_sampling ({origin['trace_sampling']}) has no effect without trace_endpoint"
    if options.trace_endpoint is not None and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", options.trace_endpoint):
        yield f"trace_endpoint is {options.trace_endpoint!r}; write it like http://127.0.0.1:4318/v1/traces"
    if options.tls_cert is not None and options.tls_key is None:
        yield "tls_cert needs tls_key"
    if options.tls_key is not None and options.tls_cert is None:
        yield "tls_key has no effect without tls_cert"
    if options.tls_client_ca is not None and options.tls_cert is None:
        yield "tls_client_ca has no effect without tls_cert and tls_key"
    if given("grpc_port") and not options.grpc:
        yield f"grpc_port ({origin['grpc_port']}) has no effect with grpc = false ({origin['grpc']})"
    if options.grpc_connection_age_s is not None and not options.grpc:
        yield (
            f"grpc_connection_age_s ({origin['grpc_connection_age_s']}) has no effect with grpc = false "
            f"({origin['grpc']})"
        )
    if options.grpc and options.http_port == options.grpc_port != 0:
        yield f"http_port and grpc_port are both {options.http_port}; give them different ports"
    if given("poll_s") and options.model_control != "poll":
        yield f"poll_s ({origin['poll_s']}) has no effect with model_control = {options.model_control!r}"
    if options.accept_code and options.model_control != "explicit":
        yield (
            f"accept_code ({origin['accept_code']}) has no effect with model_control = {options.model_control!r}; "
            "set model_control = 'explicit'"
        )
    if options.load_models and options.model_control != "explicit":
        yield (
            f"load_models ({origin['load_models']}) has no effect with model_control = {options.model_control!r}; "
            "set model_control = 'explicit'"
        )


def _model_faults(model: Resolved[ModelOptions]) -> Iterator[str]:
    options, origin, given = model.value, model.origins, model.given
    if not re.fullmatch(r"[^\s/:]*", options.name):
        yield f"name {options.name!r} ({origin['name']}) may not hold '/', ':' or blanks: it is part of the address"
    if not options.batch:
        for name in ("max_batch_size", "batch_delay_s", "batch_sizes"):
            if given(name):
                yield f"{name} ({origin[name]}) has no effect with batch = false ({origin['batch']})"
    yield from _batch_faults(options, given("max_batch_size"))
    if options.executor == "inline":
        for name in ("workers", "max_workers", "hang_s", "max_memory_bytes"):
            if given(name):
                yield f"{name} ({origin[name]}) has no effect with executor = 'inline' ({origin['executor']})"
        if any(device != "cpu" for device in options.devices):
            yield f"devices {', '.join(options.devices)} need workers, and executor is 'inline' ({origin['executor']})"
    if options.max_workers is not None and options.workers is not None and options.max_workers <= options.workers:
        yield (
            f"max_workers ({origin['max_workers']}) is {options.max_workers} and workers is {options.workers}; make it "
            "larger, or remove it"
        )
    if given("borrow_threads") and options.threads is not None:
        yield f"borrow_threads ({origin['borrow_threads']}) has no effect beside threads ({origin['threads']})"
    yield from _device_faults(options)
    if not re.fullmatch(r"all|latest:[1-9]\d*|\d+(\s*,\s*\d+)*", options.versions):
        yield f"versions is {options.versions!r}; write 'latest:N', 'all' or numbers such as '3,4'"
    for label, number in options.labels.items():
        if number < 1 or label.isdigit() or not re.fullmatch(r"[^\s/:]+", label):
            yield f"labels holds {label!r} = {number}; write a word that is no number, and a version such as 3"
    for version, digest in options.sha256.items():
        if not version.isdecimal() or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            yield f"sha256 holds {version!r} = {digest!r}; write a version's number, and 64 hexadecimal digits"
    for declared in (options.inputs, options.outputs):
        for name, declaration in declared.items():
            try:
                parse_spec(name, declaration)
            except InvalidInput as error:
                yield error.message


def _batch_faults(options: ModelOptions, size_given: bool) -> Iterator[str]:
    sizes = options.batch_sizes
    if list(sizes) != sorted(set(sizes)):
        yield f"batch_sizes is {list(sizes)}; write them ascending, each once"
    elif sizes and (sizes[-1] > options.max_batch_size or (size_given and sizes[-1] != options.max_batch_size)):
        yield (
            f"max_batch_size is {options.max_batch_size} and the largest of batch_sizes is {sizes[-1]}; "
            "make them equal, or the larger one has no effect"
        )
    if options.batch_delay_s >= options.timeout_s:
        yield f"batch_delay_s is {options.batch_delay_s:g} s, which is no less than timeout_s, {options.timeout_s:g} s"


def _device_faults(options: ModelOptions) -> Iterator[str]:
    if not options.devices:
        yield "devices is empty; write at least one, such as 'cpu'"
    for device in options.devices:
        match = re.fullmatch(r"(cpu|cuda:\d+)(?:\*(\d*\.?\d+))?", device)
        if match is None or (match[2] is not None and not 0 < float(match[2]) <= 1):
            yield f"device {device!r} is unknown; write 'cpu', 'cuda:0', or a share of one such as 'cuda:0*0.5'"
    if options.workers is not None and options.workers < len(options.devices):
        yield f"devices lists {len(options.devices)} and workers is {options.workers}: some devices would stay unused"
