"""NVIDIA Triton: the server binary from PyTriton's wheel with its Python backend, and PyTriton itself.

The wheel has no ONNX backend, so Triton runs the model through ONNX Runtime in two Python backend instances.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, v2_binary_call, v2_grpc_call, v2_json_call

HERE = Path(__file__).parent

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [{shape}] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [10] }} ]
instance_group [ {{ count: 2 kind: KIND_CPU }} ]
parameters [ {{ key: "model" value: {{ string_value: "{model}" }} }} ]
{batching}
"""


def libpython(place: Place) -> Path:
    """Where the backend's stub must find libpython: beside the interpreter whose library it will import, since another
    build of the same minor version need not fit."""
    return place.python.resolve().parent.parent / "lib"


def server_command(place: Place) -> Start:
    """Triton's own binary over `repository` in the place's folder. Puts the Python backend there too, with the stub of
    the environment's Python beside it."""
    (packages,) = (place.bin.parent / "lib").glob("python3.*/site-packages")
    root = packages / "pytriton" / "tritonserver"
    backend = place.folder / "backends" / "python"
    shutil.copytree(root / "backends" / "python", backend)
    stub = root / "python_backend_stubs" / packages.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    command = [root / "bin" / "tritonserver", "--model-repository", place.folder / "repository"]
    command += ["--backend-directory", backend.parent, "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"]
    command += ["--allow-metrics", "false", "--http-port", place.http_port, "--grpc-port", place.grpc_port]
    env = {
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{libpython(place)}",
        "PYTHONPATH": str(packages),
    }
    return Start(command, env)


class Triton:
    name = "triton"
    packages = ("nvidia-pytriton", "onnxruntime")
    distribution = "nvidia-pytriton"
    variants: ClassVar[dict[str, str]] = {
        "triton": "tritonserver, Python backend, 2 instances, dynamic_batching, max_batch_size 32",
        "triton-nobatch": "tritonserver, Python backend, 2 instances, no dynamic batching",
        "pytriton": "PyTriton, 2 infer functions, DynamicBatcher, max_batch_size 32",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        if workload == "conv":
            return {"binary": v2_binary_call(workload)}
        return {"json": v2_json_call(workload), "grpc": v2_grpc_call(workload)}

    def start(self, variant: str, place: Place) -> Start:
        name = place.workload.name
        batch = 4 if name == "conv" else 32
        if variant == "pytriton":
            ports = (place.http_port, place.grpc_port, place.extra_ports[0])
            env = {
                "MODEL": str(place.workload.model),
                "TMPDIR": str(place.folder),
                "PYTRITON_HOME": str(place.folder / "home"),
                "LD_LIBRARY_PATH": str(libpython(place)),
            }
            return Start([place.python, HERE / "serve.py", *ports, name, batch], env)
        self.write(place, batch, variant != "triton-nobatch")
        return server_command(place)

    def write(self, place: Place, batch: int, dynamic: bool) -> None:
        """A model repository."""
        name = place.workload.name
        model = place.folder / "repository" / name
        (model / "1").mkdir(parents=True)
        shutil.copy(HERE / "model.py", model / "1" / "model.py")
        shape = ", ".join(str(size) for size in place.workload.inputs.shape[1:])
        batching = "dynamic_batching { }" if dynamic else ""
        text = CONFIG.format(name=name, batch=batch, shape=shape, model=place.workload.model, batching=batching)
        (model / "config.pbtxt").write_text(text)


peer = Triton()
