"""A model's configuration in the V2 protocol's terms (Triton's ModelConfig), from what the door tells about it."""

from __future__ import annotations

import json

from penstock.core.door import ModelDescription
from penstock.core.tensor import TensorSpec


def model_config(description: ModelDescription) -> dict[str, object]:
    """The ModelConfig message in its JSON form, with the proto's own field names; only fields that have a meaning here.

    Options that the format has no field for stand in `parameters`, each as `{"string_value": "…"}`.
    """
    signature, options = description.signature, description.config
    size = _number(options.get("max_batch_size"), 1)  # 0: the runtime found that requests cannot be joined
    batchable = signature.batchable and options.get("batch", True) is not False and size > 0
    config: dict[str, object] = {
        "name": description.name,
        "platform": signature.platform,
        "backend": str(options.get("adapter") or signature.platform.partition("_")[0]),
        "version_policy": _version_policy(options.get("versions")),
        "max_batch_size": size if batchable else 0,
        "input": [
            _tensor(spec, batchable) | ({"optional": True} if spec.optional else {}) for spec in signature.inputs
        ],
        "output": [_tensor(spec, batchable) for spec in signature.outputs],
        "instance_group": [_instance_group(description)],
    }
    if batchable:
        delay_s = options.get("batch_delay_s")
        batching: dict[str, object] = {
            "max_queue_delay_microseconds": round(delay_s * 1e6) if isinstance(delay_s, (int, float)) else 0
        }
        sizes = options.get("batch_sizes")
        if isinstance(sizes, (list, tuple)) and sizes:
            batching["preferred_batch_size"] = list(sizes)
        config["dynamic_batching"] = batching
    if signature.streaming:
        config["model_transaction_policy"] = {"decoupled": True}
    own = options.get("options")
    shown = {"executor": description.executor, "path": description.path, "sha256": description.sha256}
    shown |= dict(own) if isinstance(own, dict) else {}
    config["parameters"] = {
        str(key): {"string_value": value if isinstance(value, str) else json.dumps(value)}
        for key, value in shown.items()
    }
    return config


def _tensor(spec: TensorSpec, batchable: bool) -> dict[str, object]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape[1:] if batchable else spec.shape)}


def _version_policy(versions: object) -> dict[str, object]:
    text = str(versions or "latest:1")
    if text == "all":
        return {"all": {}}
    if text.startswith("latest"):
        count = text.partition(":")[2]
        return {"latest": {"num_versions": int(count) if count.isdigit() else 1}}
    return {"specific": {"versions": [int(part) for part in text.split(",") if part.strip().isdigit()]}}


def _instance_group(description: ModelDescription) -> dict[str, object]:
    devices = description.config.get("devices")
    names = [str(device) for device in devices] if isinstance(devices, (list, tuple)) else []
    gpus = [
        int(name.partition(":")[2].partition("*")[0] or 0) for name in names if name.startswith("cuda")
    ]  # cuda:N*share
    group: dict[str, object] = {
        "name": f"{description.name}_0",
        "kind": "KIND_GPU" if gpus else "KIND_CPU",
        "count": _number(description.config.get("workers"), 1),
    }
    return group | ({"gpus": gpus} if gpus else {})


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
