"""OpenVINO: the engine for x86 CPUs. Generates from GGUF files, Hugging Face and OpenVINO folders, which are converted
once; embeds, ranks and classifies with encoders from Hugging Face and sentence-transformers folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from penstock.core.errors import LoadError
from penstock.core.nearest import nearest
from penstock.language.files import FileKind, ModelFiles
from penstock.runtime import conversion
from penstock.runtime.conversion import cache, encoder_shape
from penstock.runtime.conversion.openvino_ir import forbid_telemetry
from penstock.runtime.engines import Engine, EngineContext, Unfit
from penstock.runtime.engines.openvino import encoding, generating


class OpenVinoPlug:
    """Chooses between the two by the files' task."""

    name = "openvino"
    preference = 80
    devices = frozenset({"cpu"})
    kinds: frozenset[FileKind] = frozenset({"gguf", "huggingface", "openvino", "sentence"})

    def fit(self, files: ModelFiles) -> str:
        if files.task != "generate" and files.kind in ("huggingface", "sentence"):
            if importlib.util.find_spec("openvino") is None:
                return 'openvino is not installed: pip install "penstock[openvino]"'
            return encoder_shape.reason(files)
        if importlib.util.find_spec("openvino_genai") is None:
            return 'openvino-genai is not installed: pip install "penstock[openvino]"'
        return conversion.reason(files)

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        forbid_telemetry()
        encodes = files.task != "generate"
        known = encoding.OPTIONS if encodes else generating.OPTIONS
        if unknown := [name for name in context.options if name not in known]:
            raise LoadError(f"engine openvino has no option {unknown[0]!r}{nearest(unknown[0], known)}")
        if encodes:
            return encoding.loaded(files, context)
        if context.adapters and files.kind != "openvino":
            # Its adapters find layers by names that graphs made of GGUF lack: it warns, and answers without (2026.4.1).
            raise LoadError(
                f"OpenVINO would ignore the adapter {next(iter(context.adapters))} in a model converted from "
                f"{files.kind}: merge it into the weights, or load a GGUF model and adapter with "
                'engine = "llamacpp", or an OpenVINO folder made by optimum-cli'
            )
        conversion.check_dtype(context.dtype)  # the owner's mistake: no other engine is tried
        folder = _converted(files, context)
        try:
            return generating.loaded(files, folder, context)
        except RuntimeError as error:
            if folder == files.path:
                raise LoadError(f"OpenVINO cannot load {files.path.name}: {generating.short(error)}") from error
            cache.forget(folder)  # it was whole as far as could be seen: it is made again, once
        folder = _converted(files, context)
        try:
            return generating.loaded(files, folder, context)
        except RuntimeError as error:
            raise Unfit(f"OpenVINO cannot load what it converted: {generating.short(error)}") from error


def _converted(files: ModelFiles, context: EngineContext) -> Path:
    try:
        return conversion.convert(files, context.dtype, context.cache, lambda line: print(line, flush=True))
    except LoadError as error:
        raise Unfit(error.message, shortage=error.shortage) from error


plug = OpenVinoPlug()
