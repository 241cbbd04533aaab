"""A model's inputs from what a person has: JSON, CSV, a numpy file, an image; or made up."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from penstock.core.errors import InvalidInput
from penstock.core.json_rows import UNDECLARED, spec_of_value
from penstock.core.json_tensor import array_of_value
from penstock.core.tensor import NUMPY_OF, Array, TensorSpec, element_count

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# First bytes, for what comes through a pipe and has no name.
_IMAGES_BEGIN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_NPY_BEGINS = b"\x93NUMPY"
FORMS = "inline JSON, or a .json, .csv, .npy or image file, or - for standard input"


def read(given: str, specs: Sequence[TensorSpec], stdin: BinaryIO) -> dict[str, Array]:
    """The inputs that `given` stands for, with the datatypes of `specs` and a batch axis where it was left out.

    JSON is a V2 body, `{"input name": values}`, or the values alone for a model with one input.

    Raises:
        InvalidInput: it cannot be read, or does not fit.
    """
    if given.lstrip()[:1] in ("{", "["):
        return from_json(given, specs)
    if given == "-":
        return from_pipe(stdin.read(), specs)
    path = Path(given)
    if not path.is_file():
        raise InvalidInput(f"input {given!r} is no file; give {FORMS}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return from_npy(path.read_bytes(), specs, f"{path}")
    if suffix in IMAGES:
        return from_image(path.read_bytes(), specs, f"{path}")
    text = path.read_text(encoding="utf-8", errors="replace")
    return from_csv(text, specs) if suffix == ".csv" else from_json(text, specs)


def from_pipe(content: bytes, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Told apart by the first bytes: a numpy file, an image, JSON, or else CSV.

    Raises: InvalidInput."""
    if content.startswith(_NPY_BEGINS):
        return from_npy(content, specs, "standard input")
    if content.startswith(_IMAGES_BEGIN) or (content[:4], content[8:12]) == (b"RIFF", b"WEBP"):
        return from_image(content, specs, "standard input")
    text = content.decode("utf-8-sig", errors="replace")
    return from_json(text, specs) if text.lstrip()[:1] in ("{", "[") else from_csv(text, specs)


def from_npy(content: bytes, specs: Sequence[TensorSpec], what: str) -> dict[str, Array]:
    """Raises: InvalidInput."""
    try:
        return only(specs, np.load(io.BytesIO(content), allow_pickle=False), what)
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{what} is no numpy file of plain numbers: {error}") from error


def from_json(text: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Raises: InvalidInput."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"the input is no JSON: {error}") from error
    if isinstance(value, Mapping) and isinstance(value.get("inputs"), list):
        given = value["inputs"]
        if not all(isinstance(item, Mapping) and {"name", "data", "shape"} <= set(item) for item in given):
            raise InvalidInput("each of `inputs` needs name, shape, datatype and data")
        arrays = {str(item["name"]): _array(_spec(specs, str(item["name"])), item["data"]) for item in given}
        return {str(item["name"]): _reshape(arrays[str(item["name"])], item["shape"], item["name"]) for item in given}
    if isinstance(value, Mapping) and not specs:
        return {name: array_of_value(data, spec_of_value(name, data)) for name, data in value.items()}
    if isinstance(value, Mapping):
        return {name: fit(_spec(specs, name), _array(_spec(specs, name), data)) for name, data in value.items()}
    return only(specs, value, "a JSON list")


def from_csv(text: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Rows of a table. With column names that are the model's inputs, each column is an input; otherwise the model must
    have one input, and a row is a row of it. A first line that is no data is the column names.

    Raises: InvalidInput."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:
        raise InvalidInput(f"the input is no CSV: {error}") from error
    if not rows:
        raise InvalidInput("the CSV has no rows")
    if any(len(row) != len(rows[0]) for row in rows):
        raise InvalidInput("the rows of the CSV have different lengths")
    names = [name.strip() for name in rows[0]]
    known = {spec.name for spec in specs}
    if known and set(names) >= {spec.name for spec in specs if not spec.optional} and set(names) & known:
        made = {}
        for index, name in enumerate(names):
            if name in known:
                spec = _spec(specs, name)
                column = _array(spec, [row[index].strip() for row in rows[1:]])
                made[name] = column.reshape([-1] + [1] * (len(spec.shape) - 1))
        return made
    header = not all(_is_number(cell) for cell in rows[0]) and all(_is_number(cell) for row in rows[1:] for cell in row)
    data = rows[1:] if header and len(rows) > 1 else rows
    return only(specs, [[cell.strip() for cell in row] for row in data], "a CSV table")


def from_image(content: bytes, specs: Sequence[TensorSpec], what: str) -> dict[str, Array]:
    """The file's bytes for a BYTES input; else pixels, resized to the model's height and width, in its order of axes,
    as 0 to 1 for floats and 0 to 255 for integers.

    Raises: InvalidInput."""
    spec = _one(specs, f"the image {what}")
    if spec.datatype == "BYTES":
        element = np.empty(1, dtype=object)
        element[0] = content
        return {spec.name: element.reshape([1] * max(1, len(spec.shape)))}
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise InvalidInput("reading an image needs Pillow: pip install pillow") from error
    if len(spec.shape) != 4:
        raise InvalidInput(
            f"input '{spec.name}' has shape {list(spec.shape)}; an image needs batch, height, width, colours"
        )
    first = spec.shape[1] in (1, 3)
    channels, height, width = spec.shape[1:] if first else (spec.shape[3], spec.shape[1], spec.shape[2])
    try:
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInput(f"{what} is no image that can be read: {error}") from error
    if height > 0 and width > 0:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels.transpose(2, 0, 1) if first else pixels
    dtype = NUMPY_OF[spec.datatype]
    return {spec.name: (pixels.astype(dtype) / 255 if dtype.kind == "f" else pixels).astype(dtype)[None]}


def only(specs: Sequence[TensorSpec], value: Any, what: str) -> dict[str, Array]:
    """`value` for the model's one input.

    Raises:
        InvalidInput: the model has several."""
    spec = _one(specs, what)
    return {spec.name: fit(spec, _array(spec, value))}


def fit(spec: TensorSpec, array: Array) -> Array:
    """`array` with a batch axis added where the model has one more axis; axes of length 1 are added at the end where a
    column was given for a table."""
    if array.ndim == len(spec.shape) - 1:
        one_row = spec.shape[1:] == array.shape or all(
            want in (-1, got) for want, got in zip(spec.shape[1:], array.shape, strict=True)
        )
        return array[None] if one_row else array[..., None]
    return array


def _one(specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    if not specs:
        raise InvalidInput(f"{what} has no name: {UNDECLARED}")
    needed = [spec for spec in specs if not spec.optional] or list(specs)
    if len(needed) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInput(f"{what} fits a model with one input; this one has {names}: give JSON with a key for each")
    return needed[0]


def _spec(specs: Sequence[TensorSpec], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise InvalidInput(f"the model has no input '{name}'; it has {', '.join(spec.name for spec in specs)}")


def _array(spec: TensorSpec, value: Any) -> Array:
    dtype: npt.DTypeLike = NUMPY_OF[spec.datatype]
    try:
        if spec.datatype == "BYTES":
            texts = np.asarray(value, dtype=object)
            flat = [item if isinstance(item, bytes) else str(item).encode() for item in texts.ravel().tolist()]
            array = np.empty(len(flat), dtype=object)
            array[:] = flat
            return array.reshape(texts.shape)
        plain = np.asarray(value)
        if plain.dtype.kind in "US":
            plain = plain.astype("f8") if np.dtype(dtype).kind == "f" else plain.astype("i8")
        if np.dtype(dtype).kind in "iu" and plain.dtype.kind == "f" and not np.all(plain == np.floor(plain)):
            raise InvalidInput(f"input '{spec.name}' is {spec.datatype}, and fractions were given")
        return plain.astype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the values of input '{spec.name}' are no {spec.datatype}: {error}") from error


def _reshape(array: Array, shape: Any, name: object) -> Array:
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise InvalidInput(f"the shape of input '{name}' is {shape!r}; write a list of whole numbers")
    if element_count(tuple(shape)) != array.size:
        raise InvalidInput(f"input '{name}' has {array.size} values for shape {shape}")
    return array.reshape(shape)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
