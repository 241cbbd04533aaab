"""The same option, written in several places: which one a server and its models get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ConfigFile
from penstock.core.errors import InvalidInput
from penstock.runtime.assemble import Configuration, Offers, Written, assemble, effective
from penstock.runtime.options import ModelOptions


def folder(path: str, adapter: str) -> Sequence[ModelOptions]:
    """Recognises `NAME.onnx` as one model, and `repository/` as two whose own files set a batch size."""
    if path.endswith("repository"):
        return [ModelOptions(name=name, path=f"{path}/{name}", max_batch_size=8) for name in "ab"]
    return [ModelOptions(name=Path(path).stem, path=path, adapter=adapter)]


def put(
    *paths: str,
    model: Mapping[str, object] | None = None,
    server: Mapping[str, object] | None = None,
    trust: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    **tables: Any,
) -> Configuration:
    written = Written(paths, server or {}, model or {}, trust)
    return assemble(written, ConfigFile(Path("penstock.toml"), **tables), environ or {}, folder)


def refusal(*paths: str, **rest: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        put(*paths, **rest)
    return caught.value.message


def test_flags_beat_the_environment_beats_the_file_beats_the_models_own_files_beats_defaults() -> None:
    everything: dict[str, Any] = {
        "model": {"max_batch_size": "1"},
        "environ": {"PENSTOCK_MODEL_MAX_BATCH_SIZE": "2"},
        "models": {"a": {"max_batch_size": 3}},
        "defaults": {"max_batch_size": 5},
    }
    expected = [
        (1, "flag --max-batch-size"),
        (2, "environment PENSTOCK_MODEL_MAX_BATCH_SIZE"),
        (3, "file penstock.toml [models.a]"),
        (8, "path repository"),
    ]
    for strongest, (value, origin) in zip(list(everything), expected, strict=True):
        first = put("repository", **everything).models[0]
        assert (first.value.max_batch_size, first.origins["max_batch_size"]) == (value, origin)
        del everything[strongest]
    first = put("iris.onnx", defaults={"max_batch_size": 5}).models[0]
    assert (first.value.max_batch_size, first.origins["max_batch_size"]) == (5, "file penstock.toml [defaults]")
    assert put("iris.onnx").models[0].origins["max_batch_size"] == "default"


def test_the_server_s_options_come_from_flags_environment_and_file() -> None:
    file = ConfigFile(Path("penstock.toml"), server={"http_port": 4, "grpc_port": 5, "fronts": 6})
    environ = {"PENSTOCK_HTTP_PORT": "2", "PENSTOCK_GRPC_PORT": "3"}
    server = assemble(Written(server={"http_port": "1", "grpc_port": None}), file, environ, folder).server.value
    assert (server.http_port, server.grpc_port, server.fronts) == (1, 3, 6)


def test_models_of_the_file_are_served_too_from_beside_the_file() -> None:
    file = ConfigFile(Path("conf/penstock.toml"), models={"flower": {"path": "iris.onnx", "workers": 2}})
    models = assemble(Written(["wine.onnx"]), file, {}, folder).models
    assert [(m.value.name, m.value.path) for m in models] == [("wine", "wine.onnx"), ("flower", "conf/iris.onnx")]
    assert models[1].value.workers == 2


def test_a_path_given_beats_the_path_in_the_file() -> None:
    (model,) = put("new/iris.onnx", models={"iris": {"path": "old/iris.onnx", "workers": 2}}).models
    assert (model.value.path, model.value.workers) == ("new/iris.onnx", 2)


def test_a_name_given_renames_the_one_model_and_finds_its_table() -> None:
    (model,) = put("iris.onnx", model={"name": "flower"}, models={"flower": {"workers": 3}}).models
    assert (model.value.name, model.value.workers) == ("flower", 3)


@pytest.mark.parametrize("option", [{"name": "x"}, {"labels": {"stable": 1}}, {"inputs": {"x": "f4[n]"}}])
def test_an_option_for_one_model_is_refused_for_two(option: dict[str, object]) -> None:
    assert "is for one model, and there are 2" in refusal("repository", model=option)
    assert "is for one model" in refusal("iris.onnx", defaults=option)


def test_trust_is_for_the_named_path_only() -> None:
    models = put("iris.onnx", "wine.onnx", trust=["./wine.onnx"]).models
    assert [m.value.trust for m in models] == [False, True]
    assert models[1].origins["trust"] == "flag --trust ./wine.onnx"
    assert [m.value.trust for m in put("repository", trust=["repository/b"]).models] == [False, True]
    assert [m.value.trust for m in put("repository", trust=["repository"]).models] == [True, True]


def test_trust_of_something_else_is_refused() -> None:
    assert "is none of the models served (iris.onnx)" in refusal("iris.onnx", trust=["iris"])


def test_two_models_of_one_name_are_refused() -> None:
    assert refusal("x/iris.onnx", "y/iris.onnx") == (
        "two models are called 'iris': x/iris.onnx and y/iris.onnx; rename one with name"
    )


def test_a_table_without_a_model_is_refused() -> None:
    assert "no path given holds a model 'wine' (iris)" in refusal("iris.onnx", models={"wine": {"workers": 2}})


def test_a_table_whose_path_holds_several_models_is_refused() -> None:
    assert "holds several models (a, b)" in refusal(models={"x": {"path": "repository"}})


def test_an_unknown_key_is_refused_with_its_table() -> None:
    message = refusal("iris.onnx", models={"iris": {"worker": 2}})
    assert message == "file penstock.toml [models.iris]: there is no option 'worker'; did you mean 'workers'?"


def test_cross_checks_see_options_from_different_places() -> None:
    message = refusal("iris.onnx", model={"batch": "false"}, defaults={"batch_sizes": [1, 2]})
    assert "batch_sizes (file penstock.toml [defaults]) has no effect with batch = false (flag --batch)" in message


def test_files_are_recognised_for_the_adapter_that_was_chosen() -> None:
    seen = []

    def spy(path: str, adapter: str) -> Sequence[ModelOptions]:
        seen.append(adapter)
        return [ModelOptions(name=Path(path).stem, path=path)]

    file = ConfigFile(Path("penstock.toml"), defaults={"adapter": "c"}, models={"m": {"path": "m", "adapter": "b"}})
    assemble(Written(["x"], model={"adapter": "a"}), file, {}, spy)
    assemble(Written(["x"]), file, {}, spy)
    assert seen == ["a", "a", "c", "b"]


def test_offers_go_on_with_what_they_had_while_something_cannot_be_read(tmp_path: Path) -> None:
    models, file = tmp_path / "models", tmp_path / "penstock.toml"
    for name in ("a", "b"):
        (models / name).mkdir(parents=True)
        (models / name / "model.onnx").write_bytes(b"")
    (models / "a" / "model.toml").write_text("max_queue = 7\n")
    file.write_text("[server]\n")
    written = Written([str(models)])
    offers = Offers(written, str(file), effective(written, str(file)))
    assert {model.name: model.max_queue for model in offers()} == {"a": 7, "b": 2048}
    (models / "a" / "model.toml").write_text("max_queue = \n")
    (models / "c.onnx").write_bytes(b"")
    assert {model.name: model.max_queue for model in offers()} == {"a": 7, "b": 2048, "c": 2048}
    file.write_text("[server\n")
    assert {model.name: model.max_queue for model in offers()} == {"a": 7, "b": 2048, "c": 2048}
    (models / "a" / "model.toml").write_text("max_queue = 8\n")
    file.write_text("[server]\n")
    assert {model.name: model.max_queue for model in offers()} == {"a": 8, "b": 2048, "c": 2048}
