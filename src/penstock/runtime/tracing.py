"""The V2 trace extension: settings, global and per model, and sampled request timelines written to the log.

Settings are strings, as the protocol has them. With `trace_level` TIMESTAMPS, one request in `trace_rate` is logged as
an event `trace` with the points of its way in nanoseconds, until `trace_count` are written (-1: no end). Nothing is
paid per request while every level is OFF.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from penstock.core.errors import InvalidInput
from penstock.core.messages import Request, Response

log = logging.getLogger("penstock.trace")

_LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")
_DEFAULTS: dict[str, object] = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
}


class Tracing:
    """Settings and sampling. `active` is true while any model's level is not OFF."""

    def __init__(self) -> None:
        self.active = False
        self._settings: dict[str, dict[str, object]] = {"": dict(_DEFAULTS)}  # "" is global
        self._seen: dict[str, int] = {}
        self._left: dict[str, int] = {}

    def settings(self, model: str, update: Mapping[str, object] | None) -> Mapping[str, object]:
        """All settings in force for `model` ("" is global) after `update`; None in it goes back to the global value.

        Raises:
            InvalidInput: an unknown setting or a value that it cannot have.
        """
        if update:
            checked = {name: _check(name, value) for name, value in update.items()}
            own = self._settings.setdefault(model, {})
            for name, value in checked.items():
                if value is None:
                    own.pop(name, None)
                    if not model:
                        own[name] = _DEFAULTS[name]
                else:
                    own[name] = value
            self._find_active()
            for counts in (self._seen, self._left):  # every model counts anew when the global settings change
                counts.pop(model, None) if model else counts.clear()
        return {**self._settings[""], **self._settings.get(model, {})}

    def keep(self, models: Collection[str]) -> None:
        """Drops what was set for, and counted of, models that are gone."""
        for held in (self._settings, self._seen, self._left):
            for model in [model for model in held if model and model not in models]:
                del held[model]
        self._find_active()

    def trace(self, request: Request, response: Response) -> None:
        """Logs the request when it is its turn to be sampled."""
        model = response.model
        settings = self.settings(model, None)
        level = settings["trace_level"]
        if level == ["OFF"]:
            return
        seen = self._seen[model] = self._seen.get(model, 0) + 1
        left = self._left.setdefault(model, int(str(settings["trace_count"])))
        if left == 0 or (seen - 1) % max(1, int(str(settings["trace_rate"]))):
            return
        if left > 0:
            self._left[model] = left - 1
        timings = response.timings
        fields: dict[str, object] = {
            "model": model,
            "version": response.version,
            "request_id": request.id,
            **({"trace_id": request.trace.trace_id} if request.trace is not None else {}),
            **{
                f"{name}_ns": int(getattr(timings, name) * 1e9)
                for name in ("received", "submitted", "dispatched", "finished")
            },
            "compute_infer_ns": int(timings.compute_infer_s * 1e9),
            "batch_rows": timings.batch_rows,
        }
        if isinstance(level, list) and "TENSORS" in level:
            fields["inputs"] = {name: [str(array.dtype), list(array.shape)] for name, array in request.inputs.items()}
            fields["outputs"] = {
                name: [str(array.dtype), list(array.shape)] for name, array in response.outputs.items()
            }
        log.info("trace", extra=fields)

    def _find_active(self) -> None:
        levels = [own["trace_level"] for own in self._settings.values() if "trace_level" in own]
        self.active = any(level != ["OFF"] for level in levels)


def _check(name: str, value: object) -> object:
    if name not in _DEFAULTS:
        raise InvalidInput(f"unknown trace setting '{name}'; there are {', '.join(_DEFAULTS)}")
    if value is None:
        return None
    if name == "trace_file":
        raise InvalidInput("trace_file cannot be set by a request: traces go to the server's log")
    if name == "log_frequency":
        if str(value[0] if isinstance(value, list | tuple) and value else value) == "0":
            return "0"
        raise InvalidInput("log_frequency is of trace files; traces go to the server's log, a line at a time: only 0")
    if name == "trace_level":
        levels = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
        if not levels or any(level not in _LEVELS for level in levels):
            raise InvalidInput(f"trace_level {value!r}: a list of {', '.join(_LEVELS)}")
        return ["OFF"] if "OFF" in levels else levels
    text = str(value[0] if isinstance(value, list | tuple) and value else value)
    try:
        number = int(text)
    except ValueError:
        number = -2
    least = -1 if name == "trace_count" else 1 if name == "trace_rate" else 0
    if number < least:
        raise InvalidInput(f"{name} {value!r}: a whole number of at least {least}")
    return text
