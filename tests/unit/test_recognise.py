"""What `penstock serve PATH` is taken for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, LoadError, NotFound, PenstockError
from penstock.runtime.recognise import Found, adapters, look, recognise, safe_name

PLUGS = adapters()
TREE = "tree\nversion=v4\n"


def put(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def one(path: Path | str) -> Found:
    (found,) = look(str(path), PLUGS)
    return found


@pytest.mark.parametrize(
    ("file", "content", "adapter"),
    [
        ("iris.onnx", "", "onnx"),
        ("iris.ONNX", "", "onnx"),
        ("iris.skops", "", "sklearn"),
        ("iris.joblib", "", "sklearn"),
        ("iris.json", '{"learner":{"attributes":{}', "xgboost"),
        ("iris.json", '{\n  "features_info":\n', "catboost"),
        ("iris.ubj", "{L\0\0\0\0\0\0\0\7learner", "xgboost"),
        ("iris.model", "{L\0\0\0\0\0\0\0\7learner", "xgboost"),
        ("iris.model", TREE, "lightgbm"),
        ("iris.txt", TREE, "lightgbm"),
        ("iris.cbm", "CBM1", "catboost"),
        ("iris.py", "", "python"),
    ],
)
def test_file_is_version_1_of_a_model_named_as_its_stem(file: str, content: str, adapter: str, tmp_path: Path) -> None:
    path = put(tmp_path / file, content)
    assert one(path) == Found("iris", str(path), adapter, {1: path}, {})


def test_folder_of_numbered_versions_is_one_model(tmp_path: Path) -> None:
    for number in ("1", "3", "10"):
        put(tmp_path / "fraud" / number / "model.onnx")
    for other in ("03", "v4", ".5", "notes"):
        put(tmp_path / "fraud" / other / "model.onnx")
    found = one(tmp_path / "fraud")
    assert found.name == "fraud"
    assert found.versions == {number: tmp_path / "fraud" / str(number) / "model.onnx" for number in (1, 3, 10)}


def test_version_whose_files_are_on_their_way_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "fraud" / "1" / "model.onnx")
    put(tmp_path / "fraud" / "2" / "model.onnx.part")
    assert list(one(tmp_path / "fraud").versions) == [1]


def test_version_of_another_kind_than_the_newest_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "fraud" / "1" / "model.txt", TREE)
    put(tmp_path / "fraud" / "2" / "model.onnx")
    found = one(tmp_path / "fraud")
    assert (found.adapter, list(found.versions)) == ("onnx", [2])


def test_folder_with_a_file_called_model_is_one_model(tmp_path: Path) -> None:
    put(tmp_path / "digits" / "train.py")
    put(tmp_path / "digits" / "model.onnx")
    put(tmp_path / "digits" / "other.onnx")
    assert one(tmp_path / "digits").versions == {1: tmp_path / "digits" / "model.onnx"}


def test_folder_of_models_holds_files_versions_and_folders(tmp_path: Path) -> None:
    put(tmp_path / "iris.onnx")
    put(tmp_path / "fraud" / "2" / "weights.onnx")
    put(tmp_path / "text" / "model.py")
    put(tmp_path / "single" / "anything.txt", TREE)
    put(tmp_path / "train.py")
    put(tmp_path / "README.md")
    put(tmp_path / ".git" / "model.onnx")
    found = look(str(tmp_path), PLUGS)
    assert [(model.name, model.adapter, list(model.versions)) for model in found] == [
        ("fraud", "onnx", [2]),
        ("iris", "onnx", [1]),
        ("single", "lightgbm", [1]),
        ("text", "python", [1]),
    ]


def test_python_model_beside_weights_is_the_model(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.py")
    put(tmp_path / "m" / "1" / "weights.onnx")
    found = one(tmp_path / "m")
    assert (found.adapter, found.versions) == ("python", {1: tmp_path / "m" / "1"})


@pytest.mark.parametrize(
    ("path", "name", "adapter"),
    [("echo", "echo", "echo"), ("package.module:Name", "Name", "python"), ("module:iris", "iris", "python")],
)
def test_what_is_no_file_is_known_by_its_form(path: str, name: str, adapter: str) -> None:
    assert one(path) == Found(name, path, adapter, {1: Path(path)}, {})


def test_python_file_with_a_name_is_named_by_it(tmp_path: Path) -> None:
    path = f"{put(tmp_path / 'app.py')}:Sentiment"
    assert one(path) == Found("Sentiment", path, "python", {1: Path(path)}, {})


def test_several_files_none_called_model_are_not_guessed_among(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "a.onnx")
    put(tmp_path / "m" / "1" / "b.onnx")
    with pytest.raises(InvalidInput, match=r"holds several models \(a\.onnx, b\.onnx\)"):
        one(tmp_path / "m")


def test_snapshot_of_hugging_faces_cache_is_named_as_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--Name-1B" / "snapshots" / "c0ffee"
    put(snapshot / "model.onnx")
    assert one(snapshot).name == "Name-1B"


@pytest.mark.parametrize("file", ["gone.onnx", "gone.gguf"])
def test_nothing_there_says_what_a_model_is(file: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=rf"there is nothing at .*{re.escape(file)}\. A model is a file \(\.onnx"):
        one(tmp_path / file)
    with pytest.raises(NotFound, match=r"there is no file .*app\.py"):
        one(f"{tmp_path}/app.py:Model")


def test_folder_without_models_says_what_was_looked_at(tmp_path: Path) -> None:
    put(tmp_path / "weights.bin")
    put(tmp_path / "notes.txt")
    with pytest.raises(InvalidInput, match=r"Looked at: notes\.txt, weights\.bin\. A model is"):
        one(tmp_path)
    put(tmp_path / "m" / "1" / "weights.bin")
    with pytest.raises(InvalidInput, match=r"no version of .* Looked at: 1/ \(weights\.bin\)"):
        one(tmp_path / "m")


def test_file_of_unknown_kind_is_refused_unless_the_adapter_is_chosen(tmp_path: Path) -> None:
    path = put(tmp_path / "iris.dat")
    with pytest.raises(InvalidInput, match="not recognised as a model"):
        one(path)
    (chosen,) = look(str(path), adapters("onnx"))
    assert (chosen.adapter, chosen.versions) == ("onnx", {1: path})
    put(tmp_path / "m" / "4" / "weights.dat")
    (chosen,) = look(str(tmp_path / "m"), adapters("onnx"))
    assert (chosen.adapter, list(chosen.versions)) == ("onnx", [4])


def test_unknown_adapter_lists_the_known() -> None:
    with pytest.raises(NotFound, match="catboost, echo, language, lightgbm, onnx"):
        recognise("echo", "onyx")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "iris.onnx")
    put(tmp_path / "iris" / "1" / "model.onnx")
    with pytest.raises(InvalidInput, match="two models are called 'iris'"):
        look(str(tmp_path), PLUGS)


def test_model_behind_a_link_out_of_the_folder_is_left_out_and_told(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "1" / "model.onnx")
    put(tmp_path / "models" / "iris.onnx")
    (tmp_path / "models" / "fraud").symlink_to(tmp_path / "elsewhere")
    told: dict[str, PenstockError] = {}
    assert [found.name for found in look(str(tmp_path / "models"), PLUGS, told.__setitem__)] == ["iris"]
    assert "leads out" in str(told[str(tmp_path / "models" / "fraud")])
    with pytest.raises(LoadError, match="leads out"):
        recognise(str(tmp_path / "models"))


def test_given_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "iris.onnx")
    (tmp_path / "models").symlink_to(tmp_path / "elsewhere")
    assert [options.name for options in recognise(str(tmp_path / "models"))] == ["iris"]


def test_settings_in_the_folder_are_the_models_options(tmp_path: Path) -> None:
    put(tmp_path / "fraud" / "1" / "model.onnx")
    put(tmp_path / "fraud" / "model.toml", 'max_batch_size = 8\nbatch_delay_s = "5ms"\n[options]\nspinning = true\n')
    (options,) = recognise(str(tmp_path / "fraud"))
    assert (options.max_batch_size, options.batch_delay_s, options.options) == (8, 0.005, {"spinning": True})


def test_settings_may_name_the_adapter(tmp_path: Path) -> None:
    put(tmp_path / "fraud" / "1" / "weights.dat")
    put(tmp_path / "fraud" / "model.toml", 'adapter = "onnx"\n')
    assert one(tmp_path / "fraud").adapter == "onnx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batchsize = 8", "did you mean 'max_batch_size'"),
        ("max_batch_size = 'many'", "max_batch_size is 'many'"),
        ("max_batch_size =", "is no TOML"),
        ("trust = true", "trust cannot be set here: a model cannot vouch for itself"),
        ("path = '/etc'", "path cannot be set here"),
        ("adapter = 'os:system'", "adapter cannot be code here"),
    ],
)
def test_settings_that_cannot_be_are_refused(text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "fraud" / "1" / "model.onnx")
    put(tmp_path / "fraud" / "model.toml", text)
    with pytest.raises(InvalidInput, match=message):
        recognise(str(tmp_path / "fraud"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("iris", "iris"),
        ("my model (2)", "my_model_2"),
        ("größe", "gr_e"),
        ("../x", "x"),
        ("..", "model"),
        ("a/b", "a_b"),
    ],
)
def test_names_fit_into_every_protocols_urls(text: str, name: str) -> None:
    assert safe_name(text) == name
