"""Tokens that llama.cpp held back, found from the text of their character."""

from __future__ import annotations

from penstock.language.split_characters import Pieces, inside_character

# "🙂" is F0 9F 99 82, in the letters of a byte-level vocabulary.
BYTE_LEVEL = Pieces(["ðŁ", "Ļ", "Ĥ", "ð", "Łĺ", "a", "<|end|>", "Ġb"], "gpt2")
SPACES = Pieces(["\u2581b", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "\u2581"], "llama")


def test_bytes_of_tokens_in_both_kinds_of_vocabulary() -> None:
    assert BYTE_LEVEL.bytes_of(0) == b"\xf0\x9f" and BYTE_LEVEL.bytes_of(7) == b" b"
    assert SPACES.bytes_of(0) == b" b" and SPACES.bytes_of(1) == b"\xf0"


def test_held_back_tokens_are_found_longest_piece_first() -> None:
    assert BYTE_LEVEL.held_back("🙂", 2, 2) == [0, 1]
    assert SPACES.held_back("🙂", 4, 3) == [1, 2, 3]
    assert BYTE_LEVEL.held_back("a🙂", 2, 3) == [5, 0, 1]


def test_bytes_that_were_no_character_still_give_as_many_tokens() -> None:
    assert BYTE_LEVEL.held_back("\ufffda", 5, 2) == [3, 3]


def test_text_that_ends_inside_a_character_is_known() -> None:
    assert inside_character(b"a\xf0\x9f") and not inside_character("a🙂".encode()) and not inside_character(b"")
