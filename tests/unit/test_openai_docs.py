from __future__ import annotations

import re
from pathlib import Path

from penstock.protocols.openai_http import chat, parameters, plug, texts

PAGE = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()


def test_the_page_names_every_parameter() -> None:
    named = set(re.findall(r"`([a-z_]+)`", PAGE)) | {"model", "mirostat_mode"}
    known = chat.KNOWN | texts.KNOWN | parameters.HARMLESS | set(parameters.REFUSED)
    rarely = {"return_hidden_states", "return_assistant_tokens_mask"}  # SGLang's and TRL's own
    assert known - named - rarely == set()


def test_the_page_names_every_route() -> None:
    for route in plug.routes():
        assert route.pattern in PAGE or route.pattern.removeprefix("/v1") in PAGE, route.pattern


def test_no_parameter_is_in_two_places() -> None:
    for one, other in ((chat.KNOWN, "chat"), (texts.KNOWN, "texts")):
        assert one & parameters.HARMLESS == set(), other
    assert parameters.HARMLESS & set(parameters.REFUSED) == set()
