"""Shared memory between one writer and one reader."""

from __future__ import annotations

import os

import pytest

from penstock.core.errors import Internal
from penstock.runtime.workers.area import Area


def pair() -> tuple[Area, Area]:
    writer = Area.create(writable=True)
    return writer, Area(os.dup(writer.fd), writable=False)


def test_a_reader_sees_what_the_writer_wrote_also_after_it_grew() -> None:
    writer, reader = pair()
    for size in (1, 10, 100_000, 5_000_000, 10):
        data = os.urandom(size)
        writer.reserve(size)[:size] = data
        assert bytes(reader.view(size)) == data
    writer.close()
    reader.close()


def test_views_outlive_growth_and_closing() -> None:
    writer, reader = pair()
    writer.reserve(4)[:4] = b"abcd"
    view = reader.view(4)
    writer.reserve(10_000_000)
    reader.view(10_000_000)
    writer.close()
    reader.close()
    assert bytes(view) == b"abcd"


def test_readers_cannot_write_nor_read_beyond_the_end_and_nobody_can_shrink() -> None:
    writer, reader = pair()
    writer.reserve(10)
    view = reader.view(10)
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(Internal, match="there are"):
        reader.view(1 << 40)
    with pytest.raises(PermissionError):
        os.ftruncate(writer.fd, 0)
    writer.close()
    reader.close()


def test_memory_of_an_unusually_large_message_goes_back() -> None:
    writer, reader = pair()
    size = 64 << 20
    writer.reserve(size)[:size] = bytes(size)
    assert os.fstat(writer.fd).st_blocks * 512 >= size
    writer.trim(size)
    assert os.fstat(writer.fd).st_blocks * 512 <= 17 << 20
    writer.reserve(size)[size - 1 : size] = b"x"
    assert bytes(reader.view(size)[-1:]) == b"x"
    writer.close()
    reader.close()
