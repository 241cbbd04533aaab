"""TorchServe: a Java front, Python workers over Unix sockets. Needs Java 11 or newer."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.servers import Place, Start
from harness.wire import Call, json_call, raw_call

HERE = Path(__file__).parent

CONFIG = """inference_address=http://127.0.0.1:{http}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
model_store={store}
load_models=model=model.mar
disable_token_authorization=true
disable_system_metrics=true
install_py_dep_per_model=false
models={{"model": {{"1.0": {{"defaultVersion": true, "marName": "model.mar", "minWorkers": 2, "maxWorkers": 2, \
"batchSize": {batch}, "maxBatchDelay": 1, "responseTimeout": 60}}}}}}
"""

MANIFEST = """{"createdOn": "01/01/2025 00:00:00", "runtime": "python", "archiverVersion": "0.12.0",
"model": {"modelName": "model", "handler": "handler.py", "modelVersion": "1.0", "serializedFile": "model.onnx"}}"""


class TorchServe:
    name = "torchserve"
    packages = ("torchserve", "torch", "onnxruntime", "psutil", "packaging", "pyyaml", "requests", "orjson")
    distribution = "torchserve"
    variants: ClassVar[dict[str, str]] = {
        "torchserve": "2 workers, batchSize 32, maxBatchDelay 1 ms",
        "torchserve-nobatch": "2 workers, batchSize 1",
    }

    def calls(self, variant: str, workload: str) -> Mapping[str, Call]:
        if workload == "digits":
            return {"json": json_call("/predictions/model")}
        return {"binary": raw_call("/predictions/model")}

    def start(self, variant: str, place: Place) -> Start:
        batch = 1 if variant == "torchserve-nobatch" else 4 if place.workload.name == "conv" else 32
        store = place.folder / "store"
        store.mkdir()
        with zipfile.ZipFile(store / "model.mar", "w") as archive:
            archive.write(HERE / "handler.py", "handler.py")
            archive.write(place.workload.model, "model.onnx")
            archive.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        metrics, management, grpc_management, *_ = place.extra_ports
        text = CONFIG.format(
            http=place.http_port,
            management=management,
            metrics=metrics,
            grpc=place.grpc_port,
            grpc_management=grpc_management,
            store=store,
            batch=batch,
        )
        (place.folder / "config.properties").write_text(text)
        (place.folder / "log4j2.xml").write_text(LOG4J)
        command = [place.bin / "torchserve", "--start", "--foreground", "--ncs", "--disable-token-auth"]
        command += ["--ts-config", place.folder / "config.properties", "--log-config", place.folder / "log4j2.xml"]
        java = Path(shutil.which("java") or "/usr/bin/java").resolve().parent.parent
        env = {
            "JAVA_HOME": str(java),
            "TEMP": str(place.folder),
            "TMPDIR": str(place.folder),
            "LOG_LOCATION": str(place.folder),
            "METRICS_LOCATION": str(place.folder),
        }
        return Start(command, env)


# TorchServe logs every request at its default level
LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error"><Appenders><Console name="out"><PatternLayout pattern="%c %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""

peer = TorchServe()
