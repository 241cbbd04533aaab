"""What a router believes of a replica's cache: always closed, bounded, and matched as far as it goes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.fleet.router.prefixes import BLOCK_BYTES, Prefixes
from penstock.fleet.router.prompts import block_keys

# Conversations as paths in a small tree: each letter is one block.
PATHS = st.text("abc", max_size=12)
STEPS = st.lists(st.tuples(PATHS, st.floats(0, 30), st.integers(0, 12) | st.none()), max_size=60)


def keys(path: str) -> tuple[int, ...]:
    return block_keys(b"".join(letter.encode() * BLOCK_BYTES for letter in path))


@given(STEPS, st.integers(1, 30), PATHS)
@settings(max_examples=300, deadline=None)
def test_what_is_kept_is_closed_bounded_and_found(
    steps: list[tuple[str, float, int | None]], most: int, asked: str
) -> None:
    prefixes, now, every = Prefixes(most, longest_s=60.0), 0.0, {""}
    for path, passed, learnt in steps:
        now += passed
        every |= {path[:end] for end in range(len(path) + 1)}
        if learnt is None:
            prefixes.use(keys(path), now)
            assert prefixes.match(keys(path), now) == min(len(path), prefixes._most), "what was just used is there"
        else:
            prefixes.learn(len(path), learnt)
        assert len(prefixes) <= prefixes._most <= most
    there = {path for path in every if path and prefixes.match(keys(path), now) == len(path)}
    expired = sum(1 for used in prefixes._used.values() if used <= now - 60.0)
    assert len(prefixes) - expired == len(there), "a block is kept without the one before it, and cannot match"
    longest = max((end for end in range(1, len(asked) + 1) if asked[:end] in there), default=0)
    assert prefixes.match(keys(asked), now) == longest


@given(st.binary(max_size=4000), st.binary(max_size=4000), st.binary(max_size=4000))
@settings(deadline=None)
def test_texts_share_as_many_keys_as_they_share_whole_blocks(shared: bytes, one: bytes, other: bytes) -> None:
    first, second = block_keys(shared + one), block_keys(shared + other)
    same = next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    common = 0
    for a, b in zip(shared + one, shared + other, strict=False):
        if a != b:
            break
        common += 1
    assert same == min(common // BLOCK_BYTES, len(first), len(second))
    assert not set(first[same:]) & set(second[same:]), "after the first difference nothing is shared again"
