"""What a load call's `config` (a Triton ModelConfig in JSON) means in our options: the part that every model has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from penstock.config import options_of
from penstock.core.errors import InvalidInput
from penstock.runtime.options import ModelOptions

# Said by the model itself or of no meaning here; a client that sends back what it read from us may name them.
_IGNORED = frozenset(
    {"name", "platform", "backend", "input", "output", "inputs", "outputs", "default_model_filename", "runtime"}
)


def options_from_config(config: Mapping[str, object], options: ModelOptions) -> ModelOptions:
    """`options` with what `config` overrides.

    Raises:
        InvalidInput: a field that cannot take effect here, or a value of the wrong kind or outside an option's range.
    """
    changes: dict[str, object] = {}
    for name, value in config.items():
        if name in _IGNORED or value in (None, {}, [], ""):
            continue
        if name == "max_batch_size":
            size = _whole(name, value)
            changes["batch"] = size > 0
            if size > 0:
                changes["max_batch_size"] = size
        elif name == "version_policy":
            changes["versions"] = _version_policy(value)
        elif name == "instance_group":
            groups = value if isinstance(value, list) else [value]
            changes["workers"] = sum(_whole("instance_group.count", _of(group).get("count", 1)) for group in groups)
        elif name == "dynamic_batching":
            batching = _of(value)
            delay_us = _whole("max_queue_delay_microseconds", batching.get("max_queue_delay_microseconds", 0))
            changes["batch_delay_s"] = delay_us / 1e6
        elif name == "parameters":
            changes["options"] = {**options.options, **_parameters(value)}
        else:
            known = "max_batch_size, version_policy, instance_group, dynamic_batching, parameters"
            raise InvalidInput(f"config field '{name}' has no effect here; those that have: {known}")
    known_options = options_of(ModelOptions)
    checked = {name: known_options[name].read(value, "config") for name, value in changes.items()}
    return dataclasses.replace(options, **checked)  # type: ignore[arg-type]  # `read` gives each its type


def _of(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"config: {value!r} where an object belongs")
    return value


def _whole(name: str, value: object) -> int:
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:  # Python's integers have no end, and not every option has a maximum
        raise InvalidInput(f"config: {name} is {value!r}, a whole number of at least 0 belongs there")
    return number


def _version_policy(value: object) -> str:
    policy = _of(value)
    if "latest" in policy:
        return f"latest:{_whole('num_versions', _of(policy['latest'] or {}).get('num_versions', 1)) or 1}"
    if "specific" in policy:
        numbers = _of(policy["specific"]).get("versions", [])
        if isinstance(numbers, list) and numbers:
            return ",".join(str(_whole("versions", number)) for number in numbers)
    elif "all" in policy:
        return "all"
    raise InvalidInput(f"config: version_policy {value!r}: one of latest, all, specific")


def _parameters(value: object) -> dict[str, str]:
    return {name: str(_of(entry).get("string_value", "")) for name, entry in _of(value).items()}
