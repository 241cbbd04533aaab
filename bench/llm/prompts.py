"""Sixteen different questions of about forty tokens."""

from __future__ import annotations

_SUBJECTS = (
    "the tides of the sea", "a bicycle with a bent wheel", "baking bread at home", "the history of the printing press",
    "growing tomatoes on a balcony", "how a lighthouse works", "teaching a child to swim", "the song of blackbirds",
    "repairing an old wooden chair", "the first railways in Europe", "brewing coffee without a machine",
    "how glaciers shape valleys", "keeping bees in a city", "the rules of chess", "writing letters by hand",
    "why leaves turn red in autumn",
)  # fmt: skip


def conversations() -> list[list[dict[str, str]]]:
    """One conversation for each subject."""
    return [
        [{"role": "user", "content": f"Please tell me in a few long sentences what I should know about {subject}."}]
        for subject in _SUBJECTS
    ]
