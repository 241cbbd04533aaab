"""`max_workers`: a model that sleeps, under load that comes and goes."""

from __future__ import annotations

import threading
import time
import urllib.request

import numpy as np

from penstock.client import Client

SLEEPER = """
import time

import penstock

@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def sleeper(x):
    time.sleep(0.2)
    return {"y": x}
"""


def test_workers_come_with_the_load_and_go_when_it_is_over_and_no_request_is_lost(server, tmp_path, figure):
    (tmp_path / "code.py").write_text(SLEEPER)
    table = {"path": f"{tmp_path}/code.py:sleeper", "workers": 1, "max_workers": 3, "batch": False}
    running = server({"sleeper": table}, idle_unload_s=3600)
    stop, answered, wrong = threading.Event(), [], []

    def load() -> None:
        with Client(running.http) as client:
            while not stop.is_set():
                try:
                    client.infer("sleeper", {"x": np.ones(1, "f4")})
                    answered.append(time.monotonic())
                except Exception as error:
                    wrong.append(error)

    def ready(client: Client) -> int:
        (statistics,) = client.statistics("sleeper")
        return sum(1 for worker in statistics.workers if worker["state"] == "ready")

    def wait_for(client: Client, workers: int) -> float:
        began = time.monotonic()
        while ready(client) != workers:
            assert time.monotonic() < began + 40, client.statistics("sleeper")
            time.sleep(0.05)
        return time.monotonic() - began

    def resident_bytes() -> float:
        with urllib.request.urlopen(f"{running.http}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("penstock_models_resident_bytes ")))

    with Client(running.http) as client:
        assert ready(client) == 1
        alone_bytes = resident_bytes()
        callers = [threading.Thread(target=load) for _ in range(6)]
        for caller in callers:
            caller.start()
        took = wait_for(client, 3)
        figure("P11", "from one worker to three under load", took, "s")
        time.sleep(1.0)
        assert ready(client) == 3  # not more, and not to and fro
        assert resident_bytes() == 3 * alone_bytes > 0
        stop.set()
        for caller in callers:
            caller.join()
        assert not wrong
        began = time.monotonic()
        while ready(client) != 1:  # one request now and then, which needs one worker
            client.infer("sleeper", {"x": np.ones(1, "f4")})
            assert time.monotonic() < began + 40
        assert client.infer("sleeper", {"x": np.ones(1, "f4")})["y"].tolist() == [1.0]
        assert resident_bytes() == alone_bytes
