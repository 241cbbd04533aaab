from __future__ import annotations

import resource
import socket

import numpy as np
import pytest

from penstock.core.errors import Overloaded
from penstock.runtime.workers import frame
from penstock.runtime.workers.channel import Channel


def test_slot_whose_first_message_found_no_memory_works_once_there_is_some() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    front, worker = Channel(here, front=True), Channel(there, front=False)
    payload = frame.pack(({"x": np.zeros(1 << 17)},))
    message = frame.Run(1, payload.heads, {}, 1, 0.0)
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # holds for shared memory too
        try:
            with pytest.raises(Overloaded, match="no shared memory for a message of 1048576 bytes: File too large"):
                front.send(message, 0, payload)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        front.send(message, 0, payload)
        received = worker.receive()
        assert received is not None
        assert received.message == message
    finally:
        front.close()
        worker.close()
