"""Decision tokens: what they carry, and what is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as some

from penstock.core.errors import InvalidInput
from penstock.fleet.feedback.token import MOST_CHARACTERS, MOST_CONTEXT, VALID_S, sign, verify
from penstock.fleet.store.batch import Decision

SECRET, OTHER = "5a" * 32, "5b" * 32
MADE = Decision("00112233445566ff", "fraud", 7, 2, 0.1 + 0.2, 1_700_000_000.25, (0.5, -1.0))
NOW = MADE.at + 60

FINITE = some.floats(allow_nan=False, allow_infinity=False)


@given(
    some.builds(
        Decision,
        id=some.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"),
        deployment=some.from_regex(r"[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?", fullmatch=True),
        experiment=some.integers(0, 2**63 - 1),
        revision=some.integers(0, 2**31 - 1),
        propensity=some.floats(1e-300, 1.0),
        at=some.floats(0, 4e9),
        context=some.lists(FINITE, max_size=20).map(tuple),
    )
)
def test_a_token_gives_its_decision_back(made: Decision) -> None:
    token = sign(made, SECRET)
    assert verify(token, SECRET, made.deployment, made.at) == made
    assert token.replace("-", "").replace("_", "").isalnum()


def test_the_largest_token_fits() -> None:
    made = Decision("f" * 16, "a" * 63, 2**63, 2**31, 1.0, NOW, (1.0,) * MOST_CONTEXT)
    assert len(sign(made, SECRET)) <= MOST_CHARACTERS
    assert len(sign(MADE, SECRET)) <= 105


def test_every_changed_character_is_refused() -> None:
    token = sign(MADE, SECRET)
    for place, was in enumerate(token):
        for new in "A_z=. é":
            if new != was:
                with pytest.raises(InvalidInput):
                    verify(token[:place] + new + token[place + 1 :], SECRET, "fraud", NOW)


def test_the_other_spelling_of_the_last_character_is_refused() -> None:
    token = sign(Decision("0" * 16, "fraud", 7, 2, 0.5, NOW), SECRET)
    assert len(token) % 4, "this length leaves bits over"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    padding = "=" * (-len(token) % 4)
    assert base64.urlsafe_b64decode(twin + padding) == base64.urlsafe_b64decode(token + padding)
    with pytest.raises(InvalidInput):
        verify(twin, SECRET, "fraud", NOW)


def test_every_cut_is_refused() -> None:
    token = sign(MADE, SECRET)
    for end in range(len(token)):
        with pytest.raises(InvalidInput):
            verify(token[:end], SECRET, "fraud", NOW)
    with pytest.raises(InvalidInput):
        verify(token + "A", SECRET, "fraud", NOW)


@pytest.mark.parametrize(
    ("token", "secret", "deployment", "now", "words"),
    [
        (sign(MADE, SECRET), OTHER, "fraud", NOW, "not made here"),
        (sign(MADE, SECRET), "", "fraud", NOW, "not made here"),
        (sign(MADE, SECRET), SECRET, "other", NOW, "belongs to fraud"),
        (sign(MADE, SECRET), SECRET, "fraud", MADE.at + VALID_S + 1, "30 days"),
        (sign(MADE, SECRET), SECRET, "fraud", MADE.at - 3600, "clocks"),
        (None, SECRET, "fraud", NOW, "penstock-decision"),
        (7, SECRET, "fraud", NOW, "penstock-decision"),
        ("A" * (MOST_CHARACTERS + 1), SECRET, "fraud", NOW, "characters"),
        ("Ag" + sign(MADE, SECRET)[2:], SECRET, "fraud", NOW, "version"),
    ],
)
def test_what_is_refused_says_why(token: object, secret: str, deployment: str, now: float, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        verify(token, secret, deployment, now)
