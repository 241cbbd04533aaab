"""The answer of a prediction as JSON, CSV or .npy."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from penstock.core.errors import InvalidInput
from penstock.core.json_tensor import json_of_array
from penstock.core.messages import Request, Response
from penstock.core.tensor import Array
from penstock.protocols import HttpResponse

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
_FORMS: Final = {JSON: JSON, CSV: CSV, NPY: NPY, "*/*": JSON, "application/*": JSON, "text/*": JSON}


def answer_form(accept: str, outputs: tuple[str, ...]) -> str:
    """The content type of the answer: the first one of the Accept header that is known here, otherwise JSON.

    Raises:
        InvalidInput: CSV or .npy for several outputs.
    """
    wished = [item.partition(";")[0].strip().lower() for item in accept.split(",")]
    form = next((_FORMS[item] for item in wished if item in _FORMS), JSON)
    if form != JSON and len(outputs) > 1:
        raise InvalidInput(f"{form} holds one output, the model has {len(outputs)}: add ?output={outputs[0]}")
    return form


@dataclass(slots=True)
class PredictExchange:
    """One call, and the content type of its answer."""

    request: Request
    form: str = JSON

    def encode(self, response: Response) -> HttpResponse:
        """Raises: InvalidInput when the output has no such form."""
        arrays = response.outputs
        if self.form != JSON:
            if len(arrays) != 1:
                raise InvalidInput(f"{self.form} holds one output, the model gave {', '.join(arrays)}")
            ((name, array),) = arrays.items()
            body = _npy(array) if self.form == NPY else _csv(name, array)
            return HttpResponse(200, body, f"{CSV}; charset=utf-8" if self.form == CSV else NPY)
        values = {name: json_of_array(array) for name, array in arrays.items()}
        predictions = next(iter(values.values())) if len(values) == 1 else values
        document = {"model": response.model, "version": response.version, "predictions": predictions}
        return HttpResponse(200, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def _npy(array: Array) -> bytes:
    """Texts become fixed-width bytes (`S…`), which need no pickle to be read."""
    if array.dtype.kind == "O":
        # numpy cuts trailing NULs off fixed-width bytes; an answer must not change silently.
        if any(isinstance(item, bytes) and item.endswith(b"\0") for item in array.ravel().tolist()):
            raise InvalidInput("the output holds bytes that .npy cannot hold; ask for JSON")
        array = array.astype(np.bytes_)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _csv(name: str, array: Array) -> bytes:
    if array.ndim > 2:
        raise InvalidInput(f"output '{name}' has shape {list(array.shape)}, CSV holds rows and columns; ask for JSON")
    try:
        rows = [
            [_cell(item) for item in row] for row in array.reshape(array.shape[0] if array.ndim else 1, -1).tolist()
        ]
    except UnicodeDecodeError:
        raise InvalidInput(f"output '{name}' holds bytes that are no UTF-8 text; ask for JSON") from None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(item: object) -> object:
    if isinstance(item, bytes):
        return item.decode()
    return str(item).lower() if isinstance(item, bool) else item
