"""How a text is cut makes no difference to where it stops, nor to what characters come out of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.language.detokenise import Detokeniser
from penstock.language.stop import StopStrings
from penstock.language.tokenizer import ByteTokenizer

letters = st.text(alphabet="ab<\n", max_size=24)
stops = st.lists(st.text(alphabet="ab<\n", min_size=1, max_size=5), max_size=4)


def cut(text: str, places: list[int]) -> list[str]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: letter by letter, the first moment at which a stop is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            met = max(complete, key=len)
            return text[: end if include else end - len(met)], met
    return text, None


@given(letters, stops, st.lists(st.integers(0, 30), max_size=12), st.booleans())
def test_any_cut_of_a_text_stops_at_the_same_place(
    text: str, stops: list[str], places: list[int], include: bool
) -> None:
    stop = StopStrings(stops, include)
    shown = "".join([stop.feed(piece) for piece in cut(text, places)]) + stop.finish()
    assert (shown, stop.met) == expected(text, stops, include)


@given(letters, stops)
def test_no_more_is_held_back_than_could_become_a_stop(text: str, stops: list[str]) -> None:
    stop = StopStrings(stops)
    shown = "".join([stop.feed(letter) for letter in text])
    if stop.met is None:
        held = text[len(shown) :]
        assert text == shown + held
        longest = [
            text[at:] for at in range(len(text)) if any(one.startswith(text[at:]) and one != text[at:] for one in stops)
        ]
        assert held == (longest[0] if longest else "")


@given(st.binary(max_size=40))
def test_streamed_bytes_become_the_text_of_the_whole(raw: bytes) -> None:
    tokenizer = ByteTokenizer()
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.feed(byte) for byte in raw]
    assert "".join(pieces) + detokeniser.finish() == tokenizer.decode(raw) == raw.decode("utf-8", "replace")


@given(st.text(max_size=20))
def test_no_piece_of_a_whole_text_is_half_a_character(text: str) -> None:
    tokenizer = ByteTokenizer()
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.feed(token) for token in tokenizer.encode(text, special=False)]
    whole = "".join(pieces)
    assert whole == text.encode("utf-8", "replace").decode()
    assert all("\ufffd" not in piece or "\ufffd" in whole for piece in pieces)
