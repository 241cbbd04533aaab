"""ONNX models through ONNX Runtime.

Borrowed threads. ONNX Runtime fixes the number of threads of a session when it is made, so a model with borrowed
threads has two: a narrow one of `threads`, and a wide one of `threads + borrowed_threads` for batches that run while
every other worker is idle. It costs the weights twice, so large models have the narrow one only. (One session whose
extra threads run at the lowest priority needs no second copy, but loses a third under two requests at a time: a core's
owner waits for a part of its layer that a low thread has begun and another worker's thread has interrupted.)
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.core.declare import rows_along_axis_0
from penstock.core.errors import InvalidInput, LoadError
from penstock.core.messages import Parameter
from penstock.core.servable import LoadContext, Servable, Signature, Tensors
from penstock.core.tensor import Array, TensorSpec
from penstock.runtime import onnx_values as values
from penstock.runtime.frameworks import check_options, choose, decoded, labels_of, require, text_option

OPTIONS = ("graph_optimization_level", "execution_mode", "providers", "spinning")
LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED",
          "all": "ORT_ENABLE_ALL"}  # fmt: skip
MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
# Largest model file that is held twice for the sake of borrowed threads.
_WIDE_BYTES = 256 << 20

Convert = Callable[[Array], Any]


@dataclass(slots=True)
class Plan:
    """What one session takes and gives, and which tensors need converting on the way."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool
    before: Mapping[str, Convert]  # input name -> what ONNX Runtime wants instead
    after: Mapping[str, Callable[[Any], Array]]  # output name -> our array of it


class OnnxModel:
    """The servable. `predict` is one `session.run`; conversions happen only for types numpy lacks."""

    def __init__(
        self, narrow: Any, wide: Any | None, plan: Plan, signature: Signature, refused: type[Exception]
    ) -> None:
        self.signature = signature
        self._names = [spec.name for spec in plan.outputs]
        self._refused = refused
        self._plan = plan if plan.before or plan.after else None
        self._narrow = self._runner(narrow, plan)
        self._wide = self._narrow if wide is None else self._runner(wide, plan)
        self._run = self._narrow

    @staticmethod
    def _runner(session: Any, plan: Plan) -> Callable[..., Any]:
        if any(spec.datatype == "BF16" for spec in (*plan.inputs, *plan.outputs)):
            return values.bf16_runner(session, plan.inputs)
        run: Callable[..., Any] = session.run
        return run

    def borrow(self, on: bool) -> None:
        """Computes with the borrowed threads too, or no longer."""
        self._run = self._wide if on else self._narrow

    def predict(self, inputs: Tensors, parameters: Mapping[str, Parameter]) -> Tensors:
        """The outputs. Raises: InvalidInput when ONNX Runtime blames the input, else what it raises."""
        plan = self._plan
        if plan is not None:
            inputs = {
                name: plan.before[name](array) if name in plan.before else array for name, array in inputs.items()
            }
        try:
            results = self._run(self._names, inputs)
        except self._refused as error:
            raise InvalidInput(f"the model refused the input: {_reason(error)}") from error
        outputs = dict(zip(self._names, results, strict=True))
        if plan is not None:
            for name, convert in plan.after.items():
                outputs[name] = convert(outputs[name])
        return outputs

    def close(self) -> None:
        """Lets go of the sessions and their threads."""
        del self._run, self._narrow, self._wide


class OnnxAdapter:
    """`.onnx` files; a model's external data lies beside it."""

    name = "onnx"
    inline_safe = True  # session.run releases the GIL and runs library code only
    preload = ("onnxruntime",)

    def recognises(self, path: Path) -> bool:
        return path.suffix.lower() == ".onnx" and path.is_file()

    def load(self, path: Path, context: LoadContext) -> Servable:
        check_options(context.options, OPTIONS, self.name)
        ort = require("onnxruntime", "onnxruntime", "onnx")
        session, wide = _open(ort, path, context)
        plan = _plan(session, context)
        meta = session.get_modelmeta()
        metadata = {
            "onnxruntime": ort.__version__,
            "producer": meta.producer_name,
            "graph": meta.graph_name,
            "providers": ",".join(session.get_providers()),
            "borrowed_threads": str(context.borrowed_threads if wide is not None else 0),
            **{f"model.{key}": text for key, text in sorted(meta.custom_metadata_map.items()) if len(text) <= 200},
        }
        if opsets := values.opsets(path):
            metadata["opset"] = opsets
        signature = Signature(
            inputs=plan.inputs,
            outputs=plan.outputs,
            platform="onnxruntime_onnx",  # Triton's word for the same thing: its clients look for it
            batchable=plan.batchable,
            inline_safe=True,
            metadata=metadata,
        )
        refused = ort.capi.onnxruntime_pybind11_state.InvalidArgument
        return OnnxModel(session, wide, plan, signature, refused)


def _open(ort: Any, path: Path, context: LoadContext) -> tuple[Any, Any | None]:
    """The session with the worker's own threads, and one with the borrowed ones too where that is worth its memory."""
    providers = _providers(ort, context)
    session = _session(ort, path, context, providers, context.threads)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise LoadError(f"ONNX Runtime could not start {wanted} and offers {', '.join(session.get_providers())}")
    if not context.borrowed_threads or wanted != "CPUExecutionProvider" or _model_bytes(path) > _WIDE_BYTES:
        return session, None
    return session, _session(ort, path, context, providers, context.threads + context.borrowed_threads)


def _model_bytes(path: Path) -> int:
    """The size of the model's file and of external data named after it, as exporters name it (`model.onnx.data`)."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{glob.escape(path.stem)}*") if file.is_file())


def _session(ort: Any, path: Path, context: LoadContext, providers: Sequence[Any], threads: int) -> Any:
    options = context.options
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = 4  # what goes wrong is raised; the runtime logs it once, with its fields
    level = text_option(options, "graph_optimization_level", "all", tuple(LEVELS))
    session_options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
    mode = text_option(options, "execution_mode", "sequential", tuple(MODES))
    session_options.execution_mode = getattr(ort.ExecutionMode, MODES[mode])
    # Spinning threads burn a core each while they wait for work, and there are always others who could use it.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.get("spinning") else "0")
    try:
        return ort.InferenceSession(str(path), session_options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's many error types share no base but Exception
        raise LoadError(f"ONNX Runtime cannot load {path.name}: {_reason(error)}") from error


def _providers(ort: Any, context: LoadContext) -> Sequence[Any]:
    available = ort.get_available_providers()
    if chosen := text_option(context.options, "providers", ""):
        names = [name.strip() for name in chosen.split(",") if name.strip()]
        if missing := [name for name in names if name not in available]:
            raise LoadError(f"ONNX Runtime here has no {', '.join(missing)}; it has {', '.join(available)}")
        return names
    if not context.device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise LoadError(
            f"device {context.device} needs ONNX Runtime with CUDA; the one here offers {', '.join(available)}: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    index = int(context.device.partition(":")[2] or 0)
    options: dict[str, object] = {"device_id": index}
    total = values.device_memory_bytes(index)
    if total and context.device_fraction < 1:
        options["gpu_mem_limit"] = int(total * context.device_fraction)
        options["arena_extend_strategy"] = "kSameAsRequested"  # doubling would step over the limit
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def _plan(session: Any, context: LoadContext) -> Plan:
    inputs = [values.spec(item, "input") for item in session.get_inputs()]
    nodes = session.get_outputs()
    classes = values.probe_maps(session) if any(values.is_map(node) for node in nodes) else {}
    outputs = [values.map_spec(node, classes) if values.is_map(node) else values.spec(node, "output") for node in nodes]
    taken, given = choose(inputs, context, "input"), choose(outputs, context, "output")
    if missing := {spec.name for spec in inputs} - {spec.name for spec in taken}:
        raise LoadError(f"the model also needs {', '.join(sorted(missing))}; declare every input or none")
    after: dict[str, Callable[[Any], Array]] = {}
    for node in nodes:
        if values.is_map(node):
            after[node.name] = values.map_converter(classes.get(node.name, ()))
    given = tuple(_labelled(spec, session.get_modelmeta().custom_metadata_map) for spec in given)
    for spec in given:
        if spec.datatype == "BYTES":
            after[spec.name] = values.to_bytes
    after = {name: convert for name, convert in after.items() if any(spec.name == name for spec in given)}
    before: dict[str, Convert] = {spec.name: decoded for spec in taken if spec.datatype == "BYTES"}
    declared = bool(context.inputs and context.outputs)
    batchable = _rows(taken, given) and (declared or _one_word([*session.get_inputs(), *nodes]))
    return Plan(taken, given, batchable, before, after)


def _labelled(spec: TensorSpec, metadata: Mapping[str, str]) -> TensorSpec:
    """`spec` with the class names that the file carries for it: metadata key `labels.OUTPUT`, a JSON list."""
    text = metadata.get(f"labels.{spec.name}")
    if text is None:
        return spec
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise LoadError(f"the model's metadata labels.{spec.name} is not a JSON list: {error}") from error
    return replace(spec, labels=labels_of(labels))


def _rows(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bool:
    return rows_along_axis_0(*inputs) and rows_along_axis_0(*outputs)


def _one_word(nodes: Iterable[Any]) -> bool:
    """Whether all named axes 0 have one name: two names are two lengths, and then axis 0 is not the batch."""
    names = {node.shape[0] for node in nodes if node.shape and isinstance(node.shape[0], str)}
    # These are what exporters (PyTorch and skl2onnx, tf2onnx, Paddle) write for a length they do not know.
    unnamed = ("?", "unk__", "p2o.DynamicDimension.")
    return len({name for name in names if name and not name.startswith(unnamed)}) <= 1


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its code prefix and its build's source paths."""
    text = str(error).strip()
    if "Status Message: " in text:
        text = text.rpartition("Status Message: ")[2]
    elif text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    kept = [part for part in text.splitlines() if part.strip()]
    return kept[0].strip()[:400] if kept else type(error).__name__


plug = OnnxAdapter()
