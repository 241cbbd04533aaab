"""What crosses between our own processes, and what comes with a model: neither side trusts the other's bytes.

Between processes an error may be `Internal`: it is one of ours who sent it.
"""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from target import Fault, Target, check_refusal, run_on_loop

from penstock.core.errors import Internal, InvalidInput
from penstock.core.messages import Response, Timings
from penstock.core.tensor import parse_spec
from penstock.graphs import conditions, draw, gjson, reading, validate
from penstock.packaging.entries import Limits
from penstock.packaging.unpack import unpack
from penstock.runtime.fronts import wire
from penstock.runtime.recognise import SETTINGS, _settings
from penstock.runtime.workers import frame
from penstock.runtime.workers.channel import Channel

PAYLOAD = frame.pack(({"x": np.arange(8, dtype="f4"), "t": np.array([b"ab", b""], dtype=object)},))


def chunks_of(payload: frame.Payload) -> bytes:
    return b"".join(chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in payload.chunks)


def worker_frame(data: bytes) -> bool:
    """One message on a worker's doorbell socket."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(left, front=True)
    try:
        received = channel._parse(data)
        if isinstance(received.message, frame.Run | frame.Result | frame.Item):
            for array in frame.unpack(received.message.tensors, received.payload, owned=True).values():
                if array.dtype != object and array.nbytes > len(data):
                    raise Fault("an array holds more than was received")
        return True
    except Internal:
        return False
    finally:
        channel.close()
        right.close()


def worker_seeds() -> tuple[bytes, ...]:
    def message(header: frame.Message, payload: frame.Payload | None = None) -> bytes:
        text = frame.encode(header)
        size = 0 if payload is None else payload.size
        start = frame.prefix(0, 0, len(text), size) + text
        return start if payload is None else start + frame.gap(len(start)) + chunks_of(payload)

    return (
        message(frame.Run(1, PAYLOAD.heads, {"p": 1, "q": "r"}, -1, 0.0), PAYLOAD),
        message(frame.Result(1, PAYLOAD.heads, 0.0, 1.0), PAYLOAD),
        message(frame.Failed(1, "InvalidInput", "bad", "trace", 0.5)),
        message(frame.Credit(1, 3)),
        message(frame.LoadFailed("no", "trace")),
    )


class Listening(wire.Link[Any]):
    """An end of a front's link that looks into everything it is given."""

    def on_message(self, message: Any, payload: bytes) -> None:
        for array in frame.unpack(getattr(message, "tensors", ()), payload, owned=False).values():
            array.nbytes  # noqa: B018  # that it can be asked


class Transport(asyncio.Transport):
    """As much of a transport as a link needs, and what became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None: ...


def front_wire(data: bytes) -> bool:
    """Bytes on a front's link; the first one chooses the end and how they are cut."""
    if not data:
        return False

    async def receive() -> bool:
        link = Listening(wire.ToEngine if data[0] & 1 else wire.ToFront)
        transport = Transport()
        link.connection_made(transport)
        step = (data[0] >> 1) + 1
        for at in range(1, len(data), step):
            link.data_received(data[at : at + step])
            if len(link._received) > len(data):
                raise Fault("more is kept than was received")
        return not transport.closed

    return run_on_loop(receive())


def wire_seeds() -> tuple[bytes, ...]:
    encoder = msgspec.msgpack.Encoder()

    def framed(message: Any, payload: frame.Payload | None = None) -> bytes:
        header = encoder.encode(message)
        return (
            wire._PREFIX.pack(len(header), payload.size if payload else 0)
            + header
            + (chunks_of(payload) if payload else b"")
        )

    response = Response("m", "1", {}, timings=Timings(1.0))
    infer = wire.Infer(1, "m", "", "id", {"k": 1}, ("y",), 9.0, 0, 1.0, PAYLOAD.heads)
    answer = wire.Answer(1, "m", "1", "id", {}, PAYLOAD.heads, response.timings)
    return (
        b"\xff" + framed(infer, PAYLOAD) + framed(wire.Cancel(1)) + framed(wire.Call(2, "load", ["m", None, None])),
        b"\xfe" + framed(answer, PAYLOAD) + framed(wire.End(1)) + framed(wire.Problem(1, "NotFound", "no")),
        b"\xfe" + framed(wire.Table(True, False, [], [], [], {"m": {"": 0}}, {"n": "why"})) + framed(wire.Drain(1.0)),
    )  # fmt: skip


def model_toml(data: bytes) -> bool:
    """The `model.toml` that comes with a model, and the declarations of tensors in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SETTINGS).write_bytes(data)
        try:
            settings = _settings(Path(folder))
            for name, declaration in (*settings.get("inputs", {}).items(), *settings.get("outputs", {}).items()):
                parse_spec(name, declaration)
            return True
        except InvalidInput as error:
            check_refusal(error)
            return False


def toml_seeds() -> tuple[bytes, ...]:
    return (
        b'max_batch_size = 8\nbatch_delay_s = "2ms"\nbatch_sizes = [1, 2, 8]\nversions = "latest:2"\n',
        b'executor = "process"\nthreads = 2\n[inputs]\nx = "f4[n, 4]"\n[options]\nk = 1.5\n',
        b"workers = 2\nlabels = {stable = 3}\ndevices = ['cuda:0*0.5']\n",
    )


def archive(data: bytes) -> bool:
    """A model's archive, of whichever kind its first bytes say."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "in.tar")
        file.write_bytes(data)
        out = Path(place, "out")
        out.mkdir()
        try:
            unpack(file, out / "model", Limits(total_bytes=1 << 20, entries=100))
            return True
        except InvalidInput as error:
            check_refusal(error)
            if list(out.iterdir()):
                raise Fault("something is left of a refused archive") from error
            return False
        finally:
            if {path.name for path in Path(place).iterdir()} != {"in.tar", "out"}:
                raise Fault("something was written beside the archive")


def archive_seeds() -> tuple[bytes, ...]:
    found = []
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, kind, target in (
                ("a", tarfile.DIRTYPE, ""),
                ("a/model.onnx", tarfile.REGTYPE, ""),
                ("l", tarfile.SYMTYPE, "a"),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, target, 5 if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(b"bytes"))
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a/model.onnx", b"bytes" * 20)
        zipped.writestr("a/b/", b"")
    return (*found, buffer.getvalue())


def graph_file(data: bytes) -> bool:
    """A graph's file in any dialect, checked and drawn as far as it can be."""
    try:
        graph = reading.read(data.decode(errors="replace"), "g")
        if not validate.problems(graph):
            draw.svg(graph)
        return True
    except InvalidInput as error:
        check_refusal(error)
        return False


def graph_seeds() -> tuple[bytes, ...]:
    examples = Path(__file__).parents[2] / "examples" / "graph"
    kserve = """{"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph", "metadata": {"name": "g"}, "spec": {"nodes":
        {"root": {"routerType": "Switch", "steps": [{"serviceName": "a", "condition": "b.#(c==1)"}, {"nodeName": "n", "condition": "d"}]},
        "n": {"routerType": "Splitter", "steps": [{"serviceUrl": "http://h/p", "weight": 100}]}}}}"""
    seldon = """{"apiVersion": "machinelearning.seldon.io/v1", "kind": "SeldonDeployment", "metadata": {"name": "g"}, "spec":
        {"predictors": [{"name": "p", "graph": {"name": "r", "implementation": "RANDOM_ABTEST", "parameters": [{"name": "ratioA",
        "value": "0.2"}], "children": [{"name": "a"}, {"name": "b", "endpoint": {"service_host": "h", "service_port": 1}}]}}]}}"""
    return (examples / "careful.yaml").read_bytes(), kserve.encode(), seldon.encode()


def ensemble_config(data: bytes) -> bool:
    """A Triton ensemble's config.pbtxt."""
    try:
        validate.problems(reading.read_ensemble(data.decode(errors="replace"), "g"))
        return True
    except InvalidInput as error:
        check_refusal(error)
        return False


def ensemble_seeds() -> tuple[bytes, ...]:
    text = """name: "g" platform: 'ensemble' max_batch_size: 4 # comment
        input [ { name: "I" data_type: TYPE_FP32 dims: [ 4, -1 ] } ] output { name: "O" data_type: TYPE_STRING dims: 1 }
        ensemble_scheduling { step [ { model_name: "m" model_version: -1
        input_map { key: "a" value: "I" } output_map < key: "b" value: "O" > } ] }"""
    return (text.encode(),)


def graph_condition(data: bytes) -> bool:
    """A condition of either kind; what is read can be asked."""
    text = data.decode(errors="replace")
    try:
        if text.startswith("="):
            conditions.read(text[1:]).holds({"a": np.arange(3.0), "t": np.array([b"x"], dtype=object)})
        else:
            gjson.read(text).exists({"a": [{"b": 1, "c": ["x", None]}], "d": {"e": "f"}})
        return True
    except InvalidInput as error:
        check_refusal(error)
        return False


def condition_seeds() -> tuple[bytes, ...]:
    return b'a.#(c.#(=="x"))#.b', b'[@this].#(d.e%"f*")', b"=max(a) >= 1.5 and not t or a", b'=t == "x"'


def targets() -> tuple[Target, ...]:
    return (
        Target("worker_frame", worker_frame, worker_seeds()),
        Target("front_wire", front_wire, wire_seeds()),
        Target("model_toml", model_toml, toml_seeds()),
        Target("graph_file", graph_file, graph_seeds()),
        Target("ensemble_config", ensemble_config, ensemble_seeds()),
        Target("graph_condition", graph_condition, condition_seeds()),
        Target("archive", archive, archive_seeds()),
    )
