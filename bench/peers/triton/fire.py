"""Triton's server binary with its Python backend, under fire."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.servers import Place, Start
from peers.triton.peer import server_command

HERE = Path(__file__).parent

# Source: Triton's model configuration, "Dynamic Batcher", "Queue Policy": what it documents against a queue that grows.
CONFIG = """name: "triple"
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [10] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [10] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching {
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 10000000
    allow_timeout_override: true
    max_queue_size: 256
  }
}
"""


class Triton:
    settings = "2 instances, dynamic batching, batches of at most 4, queue of 256, timeouts of requests obeyed"
    deadlines = "V2 `timeout`: queue only"
    structure = "workers apart from the listener"

    def start(self, place: Place) -> Start:
        model = place.folder / "repository" / "triple"
        (model / "1").mkdir(parents=True)
        shutil.copy(HERE / "triple.py", model / "1" / "model.py")
        (model / "config.pbtxt").write_text(CONFIG)
        return server_command(place)

    def is_worker(self, command_line: str) -> bool:
        return "triton_python_backend_stub" in command_line

    def metrics_url(self, place: Place) -> str | None:
        return None


server = Triton()
