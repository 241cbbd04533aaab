from __future__ import annotations

import gzip
import random
import time
import tracemalloc
import zlib

import pytest

from penstock.core.compression import compress, decompress, wished_encoding
from penstock.core.errors import InvalidInput, TooLarge, Unsupported

DATA = b"penstock " * 1000
RAW = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(DATA)),
        ("GZIP", gzip.compress(DATA)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", RAW.compress(DATA) + RAW.flush()),
        ("gzip", gzip.compress(DATA[:4500]) + gzip.compress(DATA[4500:])),
        ("identity", DATA),
        ("", DATA),
    ],
    ids=["gzip", "capitals", "deflate", "raw deflate", "two members", "identity", "none"],
)
def test_every_usual_form_is_read(coding: str, packed: bytes) -> None:
    assert decompress(packed, coding, len(DATA)) == DATA
    assert decompress(memoryview(packed), coding, len(DATA)) == DATA


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_broken_cut_and_followed_data_is_refused(coding: str) -> None:
    packed = gzip.compress(DATA) if coding == "gzip" else zlib.compress(DATA)
    for broken in (packed[:-1], packed[:5], packed + b"more", b"\x00" + packed, b"x"):
        with pytest.raises(InvalidInput):
            decompress(broken, coding, 1 << 20)


def test_other_codings_are_unsupported() -> None:
    for coding in ("br", "gzip, gzip", "zstd"):
        with pytest.raises(Unsupported):
            decompress(b"x", coding, 1)


def test_a_bomb_never_takes_more_memory_than_the_limit_allows() -> None:
    bomb = gzip.compress(bytes(200 << 20), compresslevel=9)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decompress(bomb, "gzip", 1 << 20)
        with pytest.raises(TooLarge):
            decompress(gzip.compress(b"x" * 1000) * 2000, "gzip", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_many_small_files_before_a_large_one_cost_no_more_than_their_bytes() -> None:
    # zlib copies all that follows the end of a file; fed as a whole, this took 2,000 times the large one.
    large = random.Random(0).randbytes(32 << 20)
    body = gzip.compress(b"") * 2000 + gzip.compress(large, compresslevel=0)
    began = time.process_time()
    assert decompress(body, "gzip", len(large)) == large
    assert time.process_time() - began < 2.0


def test_a_body_of_countless_empty_files_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the most allowed"):
        decompress(gzip.compress(b"") * 20_000, "gzip", 1 << 20)


def test_one_named_coding_is_a_wish_and_a_list_a_habit() -> None:
    assert wished_encoding("gzip", 2000) == "gzip"
    assert wished_encoding("deflate", 2000) == "deflate"
    assert wished_encoding("gzip, deflate, br", 2000) == ""
    assert wished_encoding("br, deflate;q=0.5, gzip", 100_000) == "gzip"
    assert wished_encoding("gzip;q=0, deflate", 100_000) == "deflate"
    assert wished_encoding("gzip;q=0.0", 100_000) == ""
    assert wished_encoding("br", 100_000) == ""
    assert wished_encoding("gzip", 100) == ""


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_compressed_can_be_read_again(coding: str) -> None:
    assert decompress(compress([DATA[:10], memoryview(DATA[10:])], coding), coding, len(DATA)) == DATA
