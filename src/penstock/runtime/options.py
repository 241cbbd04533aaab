"""The runtime's options. One dataclass for the server, one for each model; see `config` for where values come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.config import option
from penstock.core.messages import Parameter


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One server: its listeners, its limits and how it stops. File table `[server]`, environment `PENSTOCK_*`."""

    host: str = option("127.0.0.1", "Address to listen on. Anything but loopback needs an API key.")
    http_port: int = option(8080, "HTTP port; 0 takes a free one.")
    grpc_port: int = option(8081, "gRPC port; 0 takes a free one.")
    grpc: bool = option(True, "Listen for gRPC.")
    fronts: int = option(1, "Front processes that share the HTTP port and the workers.")
    api_key: str | None = option(None, "Key that clients send as `Authorization: Bearer …`.", secret=True)
    api_key_file: str | None = option(None, "File with one API key per line.")
    allow_anonymous: bool = option(False, "Allow a non-loopback listener without an API key.")
    tls_cert: str | None = option(None, "Certificate chain (PEM) for both ports.")
    tls_key: str | None = option(None, "Private key (PEM) for both ports.")
    tls_client_ca: str | None = option(None, "CA (PEM) that client certificates must come from (mutual TLS).")
    max_body_bytes: int = option(256 << 20, "Largest request body.", unit="bytes")
    max_header_bytes: int = option(64 << 10, "Largest request head.", unit="bytes")
    max_json_depth: int = option(64, "Deepest nesting of JSON.")
    max_tensor_bytes: int = option(1 << 30, "Largest single tensor.", unit="bytes")
    max_decompressed_bytes: int = option(256 << 20, "Largest body after decompression.", unit="bytes")
    max_connections: int = option(10_000, "Open HTTP connections; more are refused with 503.")
    header_timeout_s: float = option(10.0, "Time to send a request's head.", unit="s")
    body_timeout_s: float = option(60.0, "Time to send a request's body.", unit="s")
    keep_alive_s: float = option(75.0, "Time an idle connection is kept.", unit="s")
    lame_duck_s: float = option(0.0, "Time between not-ready and closing the listeners after SIGTERM.", unit="s")
    grace_s: float = option(30.0, "Time for requests in flight to finish after SIGTERM.", unit="s")
    model_control: str = option(
        "poll", "Who decides what is loaded: the files once, the files polled, or calls.",
        choices=("none", "poll", "explicit"),
    )  # fmt: skip
    poll_s: float = option(2.0, "Time between looks at the model folders.", unit="s")
    load_models: tuple[str, ...] = option((), "With explicit control: models to load at the start; `*` is all.")
    timing_headers: bool = option(False, "Put the time split into a Server-Timing header of every answer.")
    log_format: str = option("auto", "Log lines: text on a terminal, else JSON.", choices=("auto", "text", "json"))
    log_level: str = option("info", "Least level logged.", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """One model. File table `[models.NAME]`; defaults for all models in `[defaults]`, flags and `PENSTOCK_MODEL_*`."""

    name: str = option("", "Public name; empty takes the file's or folder's.")
    path: str = option("", "A model file, a folder of numbered versions, or `file.py:Name`.")
    adapter: str = option("", "Adapter; empty recognises the file.")
    executor: str = option(
        "auto", "Where batches run: in the front's loop, in worker processes, or as warm-up measures.",
        choices=("auto", "inline", "process"),
    )  # fmt: skip
    workers: int | None = option(None, "Worker processes; unset is by kind of model and cores.")
    threads: int | None = option(None, "Compute threads per worker; unset shares the cores among the workers.")
    borrow_threads: bool = option(True, "Let a worker's extra threads use processor time nobody else wants.")
    devices: tuple[str, ...] = option(("cpu",), "Devices, dealt to the workers in turn: `cpu`, `cuda:0`, `cuda:0*0.5`.")
    batch: bool = option(True, "Join requests along axis 0 when the model allows.")
    max_batch_size: int = option(64, "Most rows in one batch.", unit="rows")
    batch_delay_s: float = option(0.0, "Time a free worker waits for a fuller batch.", unit="s")
    batch_sizes: tuple[int, ...] = option((), "Allowed batch sizes, ascending; batches are padded up to one.")
    max_queue: int = option(2048, "Most requests waiting; more are refused.", unit="requests")
    timeout_s: float = option(60.0, "Deadline of requests that bring none.", unit="s")
    load_timeout_s: float = option(300.0, "Time to load and warm a version.", unit="s")
    hang_s: float = option(10.0, "Silence of a worker, or time beyond its batch's deadline, until it is replaced.", unit="s")
    versions: str = option("latest:1", "Versions to serve: `latest:N`, `all`, or numbers `3,4`.")
    labels: Mapping[str, int] = option({}, "Names for versions, such as `stable = 3`.")
    trust: bool = option(False, "Allow this model's pickled files (they can run any code, in the worker).")
    warm_up: bool = option(True, "Answer made-up inputs before taking traffic; needs inputs of known type.")
    inputs: Mapping[str, str] = option({}, "Declared inputs, such as `x = \"f4[n, 4]\"`.")
    outputs: Mapping[str, str] = option({}, "Declared outputs.")
    options: Mapping[str, Parameter] = option({}, "Options of the adapter.")
