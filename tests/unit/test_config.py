"""Where values come from, which one wins, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from penstock.config import (
    ConfigFile,
    Layer,
    environment_layers,
    find_file,
    option,
    options_of,
    read_file,
    resolve,
)
from penstock.core.errors import InvalidInput
from penstock.core.messages import Parameter
from penstock.runtime.options import ModelOptions, ServerOptions


@dataclass(frozen=True, slots=True)
class Sluice:
    port: int = option(8080, "A port.", minimum=0, maximum=65535)
    limit: int = option(1 << 20, "A size.", unit="bytes")
    wait_s: float = option(1.0, "A time.", unit="s", minimum=0)
    open: bool = option(True, "A switch.")
    key: str | None = option(None, "A secret.", secret=True)
    colour: str = option("red", "A choice.", choices=("red", "green"))
    sizes: tuple[int, ...] = option((), "Some sizes.", minimum=1)
    labels: Mapping[str, int] = option({}, "Names for numbers.")
    extra: Mapping[str, Parameter] = option({}, "Free ones.")


def one(key: str, value: object) -> object:
    return getattr(resolve(Sluice, [Layer("flag {flag}", {key: value})]).value, key)


def refusal(key: str, value: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        one(key, value)
    return caught.value.message


def test_the_strongest_layer_wins_and_its_place_is_remembered() -> None:
    layers = [
        Layer("flag {flag}", {"port": "1"}),
        Layer("environment PENSTOCK_{KEY}", {"port": "2", "wait_s": "3"}),
        Layer("file penstock.toml [server]", {"port": 4, "wait_s": 5, "colour": "green"}),
    ]
    resolved = resolve(Sluice, layers)
    assert (resolved.value.port, resolved.value.wait_s, resolved.value.colour) == (1, 3.0, "green")
    assert resolved.origins["port"] == "flag --port"
    assert resolved.origins["wait_s"] == "environment PENSTOCK_WAIT_S"
    assert resolved.origins["colour"] == "file penstock.toml [server]"
    assert resolved.origins["open"] == "default"
    assert resolved.given("port") and not resolved.given("open")


def test_a_value_that_a_stronger_layer_hides_is_still_checked() -> None:
    with pytest.raises(InvalidInput, match=r"file x: port is 70000"):
        resolve(Sluice, [Layer("flag", {"port": 1}), Layer("file x", {"port": 70000})])


def test_none_leaves_the_option_to_the_next_layer() -> None:
    assert resolve(Sluice, [Layer("flag", {"port": None}), Layer("file", {"port": 7})]).value.port == 7


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("port", "0", 0),
        ("port", 65535, 65535),
        ("limit", "256MiB", 256 << 20),
        ("limit", "1.5 kB", 1500),
        ("limit", "64k", 64 << 10),
        ("limit", 12, 12),
        ("wait_s", "500ms", 0.5),
        ("wait_s", "2m", 120.0),
        ("wait_s", 3, 3.0),
        ("open", "off", False),
        ("open", "TRUE", True),
        ("key", "0123", "0123"),
        ("sizes", "1, 2,4", (1, 2, 4)),
        ("sizes", ["1", "2"], (1, 2)),
        ("sizes", [8], (8,)),
        ("labels", "stable=3,next=4", {"stable": 3, "next": 4}),
        ("labels", {"stable": 3}, {"stable": 3}),
        ("extra", "depth=3,rate=0.5,name=x,on=true", {"depth": 3, "rate": 0.5, "name": "x", "on": True}),
        ("extra", {"depth": 3}, {"depth": 3}),
    ],
)
def test_text_and_toml_values_get_the_declared_type(key: str, given: object, value: object) -> None:
    result = one(key, given)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "says"),
    [
        ("port", "eighty", "a whole number"),
        ("port", True, "a whole number"),
        ("port", 80.5, "a whole number"),
        ("port", "-1", "0 to 65535"),
        ("port", 65536, "0 to 65535"),
        ("limit", "12 parsecs", "256MiB"),
        ("limit", "0.1B", "256MiB"),
        ("wait_s", "-1ms", "at least 0"),
        ("wait_s", "nan", "500ms"),
        ("wait_s", float("inf"), "finite"),
        ("open", "maybe", "true or false"),
        ("open", 1, "true or false"),
        ("colour", "gren", "did you mean 'green'"),
        ("colour", "blue", "one of red, green"),
        ("sizes", "1,x", "a whole number"),
        ("sizes", "0,1", "at least 1"),
        ("sizes", 5, "list of whole number"),
        ("labels", "stable", "name=value"),
        ("labels", {"stable": "x"}, "a whole number"),
        ("extra", {"deep": {"x": 1}}, "true, false, a number or text"),
    ],
)
def test_a_wrong_value_is_refused_saying_what_is_allowed_and_where(key: str, given: object, says: str) -> None:
    message = refusal(key, given)
    assert says in message
    assert message.startswith(f"flag --{key.replace('_', '-')}: {key} is ")


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert refusal("prot", 1) == "flag --prot: there is no option 'prot'; did you mean 'port'?"
    assert "did you mean" not in refusal("zzzzzz", 1)


def test_a_secret_is_in_no_message_and_no_repr() -> None:
    assert "hunter2" not in refusal("key", 2) + refusal("key", ["hunter2"])
    assert "hunter2" not in repr(Sluice(key="hunter2"))


def test_declarations_with_commas_stay_whole() -> None:
    layer = Layer("flag", {"inputs": "x=f4[n, 4],y=i8[n]"})
    assert resolve(ModelOptions, [layer]).value.inputs == {"x": "f4[n, 4]", "y": "i8[n]"}


def test_the_environment_sets_the_server_and_every_model() -> None:
    server, model = environment_layers(
        ServerOptions, ModelOptions, {"PENSTOCK_HTTP_PORT": "9", "PENSTOCK_MODEL_WORKERS": "2", "HOME": "/root"}
    )
    assert resolve(ServerOptions, [server]).value.http_port == 9
    resolved = resolve(ModelOptions, [model])
    assert resolved.value.workers == 2
    assert resolved.origins["workers"] == "environment PENSTOCK_MODEL_WORKERS"


def test_an_environment_name_that_nothing_reads_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"PENSTOCK_HTTP_PROT: nothing reads this; did you mean 'PENSTOCK_HTTP_PORT'"
    ):
        environment_layers(ServerOptions, ModelOptions, {"PENSTOCK_HTTP_PROT": "9"})
    with pytest.raises(InvalidInput, match="PENSTOCK_MODEL_TRUST"):
        environment_layers(ServerOptions, ModelOptions, {"PENSTOCK_MODEL_TRUST": "true"})


def test_service_links_of_an_orchestrator_are_not_options() -> None:
    links = {
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT": "80",
        "PENSTOCK_SERVICE_PORT_HTTP": "80",
        "PENSTOCK_PORT": "tcp://10.0.0.1:80",
        "PENSTOCK_PORT_80_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_HTTP_PORT": "tcp://10.0.0.1:80",
    }
    server, _ = environment_layers(ServerOptions, ModelOptions, links)
    assert not server.values


def test_a_file_is_read_into_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text('[server]\nhttp_port = 1\n[models.iris]\npath = "iris.onnx"\n[models.iris.options]\ndepth = 3\n')
    file = read_file(path)
    assert file.server == {"http_port": 1}
    assert file.models == {"iris": {"path": "iris.onnx", "options": {"depth": 3}}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[servers]\n", "did you mean 'server'"),
        ("server = 3\n", "write a table"),
        ("[models]\niris = 3\n", "models.iris is 3"),
        ("[server\n", "is no TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "penstock.toml").write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_file(tmp_path / "penstock.toml")


def test_a_named_file_must_exist_and_an_unnamed_one_need_not(tmp_path: Path) -> None:
    assert find_file(None, {}, tmp_path) == ConfigFile()
    with pytest.raises(InvalidInput, match="cannot be read"):
        find_file("missing.toml", {}, tmp_path)
    (tmp_path / "penstock.toml").write_text("[server]\n")
    assert find_file(None, {}, tmp_path).path == tmp_path / "penstock.toml"


def test_every_option_has_a_doc_and_a_default_that_it_would_accept() -> None:
    for kind in (ServerOptions, ModelOptions):
        for name, each in options_of(kind).items():
            assert each.doc.endswith("."), name
            if each.default is not None:
                assert each.read(each.default, "default") == each.default


def test_server_and_model_options_share_no_name() -> None:
    assert not {field.name for field in fields(ServerOptions)} & {field.name for field in fields(ModelOptions)}
