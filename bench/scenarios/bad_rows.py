"""Requests that must fail, sent beside the load: each has a negative number, which the model raises for."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from scenarios import MODEL

_THREADS = 32
_TIMEOUT_S = 10.0
_BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [-1.0] * 10}]}).encode()


class BadRows:
    """Sends `rate` of them a second, evenly, for `seconds` after `start`."""

    def __init__(self, port: int, rate: float, seconds: float) -> None:
        self._port, self._rate, self._seconds = port, rate, seconds
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self.outcomes: Counter[str] = Counter()  # HTTP statuses, or what went wrong

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> Counter[str]:
        """What became of them. Blocks until all are over."""
        if self._thread.ident is not None:
            self._thread.join()
        return self.outcomes

    def _send_all(self) -> None:
        begun = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as pool:
            statuses = []
            for number in range(int(self._rate * self._seconds)):
                time.sleep(max(0.0, begun + number / self._rate - time.monotonic()))
                statuses.append(pool.submit(self._send))
            self.outcomes.update(status.result() for status in statuses)

    def _send(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", f"/v2/models/{MODEL}/infer", _BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()
