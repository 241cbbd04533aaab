"""Pages that are made from the code equal the code, and what the README tells people to type exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import penstock
from penstock.cli.app import COMMANDS
from penstock.cli.configuration import page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]


def commands(path: Path) -> list[str]:
    """The lines after a `$` in the page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_configuration_page_is_the_one_the_code_makes() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "run `make docs`"


def test_the_page_of_promises_is_made_from_them_and_from_what_was_measured() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "promises.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "promises.md").read_text() == made, "run `make docs`"


def test_every_promise_and_fault_has_a_test_or_a_reason() -> None:
    told = tomllib.loads((ROOT / "docs" / "promises.toml").read_text())
    for one in [*(promise for section in told["section"] for promise in section["promise"]), *told["fault"]]:
        assert one["tests"] or one.get("note") or one.get("without"), one["id"]
        for test in one["tests"]:
            assert (ROOT / test).exists(), test


def test_the_readme_shows_the_two_commands_first() -> None:
    first, second, *_ = commands(ROOT / "README.md")
    assert first.startswith("make serve") and second.startswith("make test")


def test_every_make_target_in_the_pages_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        for command in commands(path):
            if command.startswith("make "):
                assert command.split()[1] in targets, (path.name, command)


def test_every_penstock_command_in_the_pages_exists() -> None:
    seen = set()
    for path in PAGES:
        for command in commands(path):
            words = [word for word in command.split() if not re.match(r"\w+=", word)]
            if words[0] == "penstock":
                assert words[1] in COMMANDS, (path.name, command)
                seen.add(words[1])
    assert {"serve", "predict", "models"} <= seen


def test_the_rooms_are_those_of_the_tree() -> None:
    text, package = (ROOT / "docs" / "rooms.md").read_text(), ROOT / "src" / "penstock"
    known = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    files = set(re.findall(r"`([a-z_0-9]+\.py)`", text))
    assert files <= {path.rpartition("/")[2] for path in known}
    rooms = {path.partition("/")[0].removesuffix(".py") for path in known} - {"__init__"}
    assert {room for room in rooms if f"`penstock.{room}`" not in text} == set()
    for wing in ("runtime", "fleet"):
        inner = {path.parent.name for path in (package / wing).glob("*/__init__.py")}
        assert {room for room in inner if f"`{wing}.{room}`" not in text} == set()


def test_every_link_to_a_file_leads_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def test_the_changelog_knows_the_version_or_an_unreleased_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{penstock.__version__}]" in text


def test_the_extra_all_holds_every_extra_but_the_engines_on_pytorch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    within = {"language", "llamacpp", "openvino"}  # of `llm`
    assert all(re.search(rf"\b{name}\b", " ".join([*extras["llm"], *extras["llamacpp"]])) for name in within)
    on_pytorch = {"transformers", "vllm"}  # gigabytes each
    assert everything == f"penstock[{','.join(name for name in extras if name not in within | on_pytorch)}]"


def test_the_page_of_the_platform_s_api_has_every_call_and_no_other() -> None:
    calls = set()
    for path in (ROOT / "src" / "penstock" / "fleet" / "controller").glob("*_api.py"):
        text = path.read_text().replace("{_DEPLOYMENT}", "/api/v1/deployments/{name}")
        text = text.replace("(_DEPLOYMENT,", '("/api/v1/deployments/{name}",')
        found = re.findall(r'web\.(get|put|post|delete)\(f?"([^"]+)"', text)
        calls |= {f"{method.upper()} {target}" for method, target in found}
    page = (ROOT / "docs" / "fleet-api.md").read_text()
    assert set(re.findall(r"^\| `((?:GET|PUT|POST|DELETE) [^`?]+)`", page, re.MULTILINE)) == calls
