"""`penstock.yaml`, as the command line reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli.documents import read
from penstock.core.errors import InvalidInput


def test_paths_are_from_the_file_s_folder(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("deployments:\n  fraud:\n    model: models/1\n    requirements: r.txt\ntenants:\n  a: {rate: 5}\n")
    documents = read(file)
    assert documents.deployments == {"fraud": {"model": f"{tmp_path}/models/1", "requirements": f"{tmp_path}/r.txt"}}
    assert documents.tenants == {"a": {"rate": 5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deploiments: {}", "did you mean 'deployments'"),
        ("deployments: [1]", "write a table for each name"),
        ("deployments: {a: 3}", "deployments.a is 3"),
        ("a: *b", "aliases"),
        ("deployments: {a: {model: x}, a: {model: y}}", "written twice"),
        ("- 1", "no table"),
        ("a: [", "no YAML"),
        ("!!python/object/apply:os.system ['true']", "no YAML"),
    ],
)
def test_what_is_no_document_is_refused_and_says_why(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read(file)
    assert words in caught.value.message
