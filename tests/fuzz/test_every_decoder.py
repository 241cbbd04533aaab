"""Whatever bytes come, a decoder answers or refuses them with an error of the caller's: the short form, by hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

WORDS = [
    b"null", b"true", b"-1", b"1e999", b"NaN", b"[", b"]", b"{", b"}", b'"', b"\\u", b"\\ud800", b"99999999999999999999", b"9" * 400,
    b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"\r\n", b"\n", b"\0", b"\xff\xff\xff\xff", b"\x80" * 10, b"..", b"/", b"%00", b"%2e%2e",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid input with some bytes replaced, cut out, doubled, or taken from another one; or just any bytes."""
    if not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=64))
    body = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 8)))
        other = draw(st.sampled_from(seeds))
        cut = draw(st.integers(0, len(other)))
        body[start:end] = draw(
            st.binary(max_size=4)
            | st.sampled_from(WORDS)
            | st.just(bytes(body[start:end]) * 2)
            | st.just(other[cut : cut + 16])
        )
    return bytes(body)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_of_others_are_answered_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=300, deadline=5000, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(target.seeds))
    def run(data: bytes) -> None:
        target.run(data)

    run()


# Seeds that are refusals on purpose: an answer with an error is valid, too.
REFUSED = {("client_answer", 5), ("client_stream", 2), ("client_stream", 3)}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_get_through_to_the_end(name: str) -> None:
    """A fuzzer that begins with what is refused at the door finds nothing behind it."""
    target = TARGETS[name]
    refused = [index for index, seed in enumerate(target.seeds) if not target.run(seed)]
    assert refused == [index for other, index in sorted(REFUSED) if other == name]
