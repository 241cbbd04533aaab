"""What every adapter owes. A new file in the folder is picked up here and fails until it has a case."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adapter_cases import CASES, Case

from penstock.core.errors import LoadError
from penstock.core.servable import Adapter, LoadContext, Servable
from penstock.core.tensor import NUMPY_OF
from penstock.runtime import adapters

EVERY = sorted(module.name for module in pkgutil.iter_modules(adapters.__path__))
# Language models take tokens and give streams of them: test_engines.py is their suite.
NAMES = [name for name in EVERY if name != "language"]


def plug(name: str) -> Adapter:
    return importlib.import_module(f"penstock.runtime.adapters.{name}").plug


def context(case: Case) -> LoadContext:
    return LoadContext("model", 1, options=case.options)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def case(name: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    assert name in CASES, f"adapter {name} has no case: add one to adapter_cases.py"
    return CASES[name](tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def servable(name: str, case: Case) -> Servable:
    return plug(name).load(case.path, context(case))


def test_name_is_the_files_name(name: str) -> None:
    assert plug(name).name == name
    assert isinstance(plug(name).inline_safe, bool)
    assert all(isinstance(module, str) for module in plug(name).preload)


def test_every_artifact_is_recognised_by_its_adapter_alone(name: str, case: Case) -> None:
    assert [other for other in EVERY if plug(other).recognises(case.path)] == [name]


def test_importing_the_adapter_imports_no_framework(name: str, case: Case) -> None:
    source = Path(importlib.import_module(f"penstock.runtime.adapters.{name}").__file__ or "").read_text()
    top_level = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not case.framework or not any(case.framework in line.split(".")[0].split() for line in top_level)


def test_signature_is_the_same_each_time(name: str, case: Case, servable: Servable) -> None:
    assert plug(name).load(case.path, context(case)).signature == servable.signature


def test_answers_are_exactly_those_of_the_framework(case: Case, servable: Servable) -> None:
    outputs = servable.predict(case.inputs, {})
    assert list(outputs) == list(case.expected)
    for output, expected in case.expected.items():
        np.testing.assert_array_equal(np.asarray(outputs[output]), expected)


def test_outputs_are_as_the_signature_says(case: Case, servable: Servable) -> None:
    outputs = servable.predict(case.inputs, {})
    for spec in servable.signature.outputs:
        array = outputs[spec.name]
        assert array.dtype == NUMPY_OF[spec.datatype]
        replace(spec).check(array)
        assert len(spec.labels) in (0, array.shape[-1])


def test_rows_do_not_depend_on_each_other(case: Case, servable: Servable) -> None:
    assert servable.signature.batchable
    whole = servable.predict(case.inputs, {})
    for row in range(5):
        alone = servable.predict({name: array[row : row + 1] for name, array in case.inputs.items()}, {})
        for output, expected in whole.items():
            np.testing.assert_allclose(alone[output][0], expected[row], rtol=1e-6)


def test_read_only_inputs_are_taken(case: Case, servable: Servable) -> None:
    frozen = {name: array.copy() for name, array in case.inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False
    servable.predict(frozen, {})


def test_inline_safe_servables_come_only_from_inline_safe_adapters(name: str, servable: Servable) -> None:
    assert plug(name).inline_safe or not servable.signature.inline_safe


def test_unknown_option_is_refused(name: str, case: Case) -> None:
    with pytest.raises(LoadError, match="no option 'colour'"):
        plug(name).load(case.path, replace(context(case), options={"colour": "blue"}))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_damaged_file_is_a_load_error(name: str, case: Case, share: float, tmp_path: Path) -> None:
    if not case.path.is_file():
        pytest.skip(f"{name} loads no file")
    data = case.path.read_bytes()
    damaged = tmp_path / f"damaged_{name}{case.path.suffix}"
    damaged.write_bytes(data[: int(len(data) * share)] + (b"\n)" if name == "python" else b""))
    with pytest.raises(LoadError) as caught:
        plug(name).load(damaged, context(case))
    assert damaged.stem in str(caught.value)


def test_missing_framework_is_told_with_what_to_install(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if not case.framework:
        pytest.skip(f"{name} needs no framework")
    monkeypatch.setitem(sys.modules, case.framework, None)  # Python's own way to say: cannot be imported
    with pytest.raises(LoadError, match=r"pip install 'penstock\["):
        plug(name).load(case.path, context(case))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
def test_pickles_are_never_opened_without_trust(name: str, suffix: str, tmp_path: Path) -> None:
    path, proof = tmp_path / f"model{suffix}", tmp_path / "ran"
    # A pickle that, when opened, writes a file: os.system("touch …").
    path.write_bytes(b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR.")
    if not plug(name).recognises(path):
        pytest.skip(f"{name} takes no pickles")
    with pytest.raises(LoadError, match="--trust"):
        plug(name).load(path, LoadContext("model", 1))
    assert not proof.exists()


def test_closing_twice_loaded_models_is_independent(name: str, case: Case, servable: Servable, tmp_path: Path) -> None:
    if case.path.is_file():
        copy = tmp_path / f"copy_{name}{case.path.suffix}"
        shutil.copy(case.path, copy)
    else:
        copy = case.path
    other = plug(name).load(copy, context(case))
    other.close()
    servable.predict(case.inputs, {})


def test_page_in_the_docs_names_every_option(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "adapters" / f"{name}.md"
    assert page.is_file(), f"write docs/adapters/{name}.md"
    documented = re.findall(r"^\| `(\w+)` \|", page.read_text().partition("## Options")[2], flags=re.MULTILINE)
    assert sorted(documented) == sorted(importlib.import_module(f"penstock.runtime.adapters.{name}").OPTIONS)
    assert f"[{name}]({name}.md)" in (page.parent / "index.md").read_text()
