"""BentoML: uvicorn workers around a service class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, raw_call

HERE = Path(__file__).parent


class BentoML:
    name = "bentoml"
    packages = ("bentoml", "onnxruntime", "uvloop", "httptools")
    distribution = "bentoml"
    variants: ClassVar[dict[str, str]] = {
        "bentoml": "workers 2, no batching, uvloop",
        "bentoml-batch": "workers 2, adaptive batching up to 32",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        batch = variant == "bentoml-batch"
        if workload == "digits":
            return {"json": json_call("/predict", answer=None, rows=batch)}
        # its batched calls take arrays in JSON; files are not joined
        return {} if batch else {"binary": raw_call("/predict")}

    def start(self, variant: str, place: Place) -> Start:
        service = "DigitsBatch" if variant == "bentoml-batch" else "Digits"
        if place.workload.name == "conv":
            service = "Conv"
        command = [place.python, "-m", "bentoml", "serve", f"service:{service}", "--working-dir", HERE]
        command += ["--host", "127.0.0.1", "--port", place.http_port]
        env = {
            "MODEL": str(place.workload.model),
            "BENTOML_HOME": str(place.folder / "home"),
            "BENTOML_DO_NOT_TRACK": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return Start(command, env)


peer = BentoML()
