"""Compares the answers of a shadow with those that callers got.

The router has sent its caller's answer before anything here happens. Reading two bodies takes a millisecond where they
are large, so a thread does it. As it shares the interpreter with the loop, it rests four times as long as it worked,
and bodies have a limit; while it is behind, pairs are dropped and counted. What it sums goes to the store with the
recorder's next batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from penstock.fleet.evidence.comparison import Comparison
from penstock.fleet.evidence.differences import Body, Difference, difference
from penstock.fleet.router.hooks import Answer
from penstock.fleet.routes import Endpoint
from penstock.fleet.store.batch import Arm

MOST_WAITING = 64  # pairs that wait for the thread
MOST_BYTES = 256 << 10  # of one body: reading two takes 2 ms, for which the loop may have to wait
_REST = 4.0  # times the processor time of a comparison
_EXCERPT = 400  # characters of each body in an example

_log = logging.getLogger(__name__)


class Mirror:
    """The router's `hooks.Mirror`. `start` begins its thread, `close` ends it."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: dict[Arm, Comparison] = {}
        self._pairs: queue.Queue[tuple[Arm, Answer, Answer] | None] = queue.Queue(MOST_WAITING)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="penstock-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Compares what waits, for at most `timeout_s`. To be called before the recorder is closed."""
        self._closing = True
        try:
            self._pairs.put(None, timeout=timeout_s)
        except queue.Full:
            return  # the thread is a daemon
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def wants(self, endpoint: Endpoint, number: float) -> bool:
        """As `hooks.Mirror.wants`: none are sent while the thread is behind."""
        shadow = endpoint.shadow
        if shadow is None or number >= shadow.share:
            return False
        if self._pairs.full():
            self.skip(endpoint, "behind")
            return False
        return True

    def skip(self, endpoint: Endpoint, why: str) -> None:
        """Counts a request that was not copied, or whose copy got no answer: `behind`, `too_large` or `failed`."""
        if endpoint.shadow is not None:
            with self._lock:
                self._of((endpoint.name, endpoint.experiment, endpoint.shadow.revision)).skip(why)

    def compare(self, endpoint: Endpoint, live: Answer, shadow: Answer) -> None:
        """As `hooks.Mirror.compare`. Status 0 of the shadow counts as `failed`; of the live answer (its caller left, or
        nobody answered) as nothing."""
        arm = (endpoint.name, endpoint.experiment, shadow.revision)
        if not live.status:
            return
        if not shadow.status:
            self.skip(endpoint, "failed")
            return
        try:
            self._pairs.put_nowait((arm, live, shadow))
        except queue.Full:
            self.skip(endpoint, "behind")

    def take(self) -> dict[Arm, str]:
        """What was summed since the last call, as documents of `evidence.comparison`; for the recorder."""
        with self._lock:
            sums, self._sums = self._sums, {}
        return {arm: comparison.document() for arm, comparison in sums.items()}

    def _of(self, arm: Arm) -> Comparison:
        return self._sums.setdefault(arm, Comparison())

    def _run(self) -> None:
        while (pair := self._pairs.get()) is not None:
            began = time.thread_time()
            try:
                self._compare(*pair)
            except Exception:  # the outermost loop of this thread: a strange body must not end it
                _log.exception("mirror_failed")
            if not self._closing:
                time.sleep(min(1.0, _REST * (time.thread_time() - began)))

    def _compare(self, arm: Arm, live: Answer, shadow: Answer) -> None:
        succeeded = live.status < 400 and shadow.status < 400
        large = max(len(live.body), len(shadow.body)) > MOST_BYTES
        found = (
            difference(Body(live.body, live.json_bytes), Body(shadow.body, shadow.json_bytes))
            if succeeded and not large
            else None
        )
        badness = _badness(live, shadow, found)
        with self._lock:
            sums = self._of(arm)
            sums.pair((live.status, shadow.status), (live.latency_s, shadow.latency_s))
            if found is not None:
                sums.outputs(found)
            elif large:
                sums.skip("too_large")
            if badness > 0 and sums.worth_an_example(badness):
                sums.example(badness, self._example(live, shadow, found))

    def _example(self, live: Answer, shadow: Answer, found: Difference | None) -> dict[str, object]:
        example: dict[str, object] = {
            "at": self._clock(), "live": _shown(live), "shadow": _shown(shadow),
            "what": "other status" if found is None else found.unlike or "other values",
        }  # fmt: skip
        if found is not None and not found.unlike:
            example |= {"max_abs": found.max_abs, "max_rel": found.max_rel}
        return example


def _shown(answer: Answer) -> dict[str, object]:
    text = answer.body[: 4 * _EXCERPT].decode(errors="replace")
    return {
        "status": answer.status, "latency_ms": round(answer.latency_s * 1e3, 3), "body": text[:_EXCERPT],
    }  # fmt: skip


def _badness(live: Answer, shadow: Answer, found: Difference | None) -> float:
    """0 for answers that are alike; else more, the worse: see `Difference.badness`; another status is worst."""
    if (live.status < 400) != (shadow.status < 400):
        return 8.0
    if found is None or found.equal:
        return 0.0
    return found.badness
