"""Hugging Face's transformers: what runs any of its architectures, on CPUs and GPUs, when no faster engine fits.

Option: `pooling` of a model that embeds ("mean", "cls", "last", "max"), instead of what its files say.
"""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import version
from typing import Any

from penstock.core.errors import InvalidInput, LoadError
from penstock.core.language import EngineInfo
from penstock.core.nearest import nearest
from penstock.language import memory
from penstock.language.files import FileKind, ModelFiles
from penstock.language.generation_config import end_ids, sampling_defaults
from penstock.language.memory.cache import token_bytes
from penstock.language.tokenizer import open_tokenizer
from penstock.runtime.engines import Engine, EngineContext
from penstock.runtime.engines.transformers.encoding import Encoder, plain_score, pooling
from penstock.runtime.engines.transformers.generating import Generator

_OPTIONS = ("pooling",)
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_MAX_RUNNING = 4  # sequences share no step: more of them make each slower, and nothing faster
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")  # positions begin after the padding's id


class TransformersPlug:
    """Generates, embeds, ranks and classifies from Hugging Face and sentence-transformers folders."""

    name = "transformers"
    preference = 10
    devices = frozenset({"cpu", "cuda"})
    kinds: frozenset[FileKind] = frozenset({"huggingface", "sentence"})

    def fit(self, files: ModelFiles) -> str:
        if files.kind not in ("huggingface", "sentence"):
            return f"it loads Hugging Face and sentence-transformers folders, not {files.kind}"
        if files.config.get("is_encoder_decoder"):
            return "models of an encoder and a decoder are not run"
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                return f'{package} is not installed: pip install "penstock[transformers]"'
        return ""

    def load(self, files: ModelFiles, context: EngineContext) -> Engine:
        options = dict(context.options)
        if unknown := [name for name in options if name not in _OPTIONS]:
            raise LoadError(f"engine transformers has no option {unknown[0]!r}{nearest(unknown[0], _OPTIONS)}")
        if context.adapters:
            raise LoadError('engine transformers takes no LoRA adapters: use engine = "vllm", or merge them')
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
        import torch

        torch.set_num_threads(max(1, context.threads))
        try:
            if files.task == "generate":
                return _generator(files, context)
            return _encoder(files, context, str(options.get("pooling", "")))
        except InvalidInput as error:
            raise LoadError(error.message) from error
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            raise LoadError(
                f"transformers cannot load {files.path.name}: {' '.join(str(error).split())[:400]}"
            ) from error


def _model(kind: Any, files: ModelFiles, context: EngineContext) -> Any:
    """The weights on the device. Pickled weights and code of the folder only when it is trusted."""
    if context.dtype and context.dtype not in _DTYPES:
        raise LoadError(f"dtype = {context.dtype!r}: engine transformers computes in {', '.join(_DTYPES)}")
    # Most CPUs have no bf16 arithmetic, and emulate it at a fraction of the speed.
    automatic = "float32" if context.device == "cpu" else "auto"
    model = kind.from_pretrained(
        files.path, dtype=_DTYPES.get(context.dtype, automatic), local_files_only=True,
        trust_remote_code=context.trusted, use_safetensors=None if context.trusted else True,
    )  # fmt: skip
    return model.to(context.device).eval()


def _precision(model: Any) -> str:
    name = str(model.dtype).removeprefix("torch.")
    return next((short for short, whole in _DTYPES.items() if whole == name), name)


def _weights_bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def _generator(files: ModelFiles, context: EngineContext) -> Engine:
    import transformers

    words = open_tokenizer(files)
    defaults, ends = sampling_defaults(files), end_ids(files)
    model = _model(transformers.AutoModelForCausalLM, files, context)
    model.generation_config = transformers.GenerationConfig()  # its values would stand in for those left unset
    config = model.config.get_text_config()
    own = getattr(config, "max_position_embeddings", None) or 4096
    longest = min(int(own), context.context_tokens or int(own))
    running = context.max_running or _MAX_RUNNING
    precision = _precision(model)
    per_token = token_bytes(memory.read(files), "f32" if precision == "f32" else "f16")
    info = EngineInfo(
        engine="transformers", engine_version=version("transformers"), context_tokens=longest,
        vocabulary=int(config.vocab_size), grammars=frozenset({"ebnf", "regex"}) if ends else frozenset(),
        top_logprobs=20, prompt_logprobs=True, logit_bias=True, min_p=True, min_tokens=True, ignore_eos=True,
        no_repeat_ngram=True, max_running=running, kv_bytes_per_token=per_token, kv_capacity=longest * running,
        weights_bytes=_weights_bytes(model), precision=precision,
        note="each sequence is computed by itself: for few users at once",
    )  # fmt: skip
    return Generator(model, words, ends, defaults, info)


def _encoder(files: ModelFiles, context: EngineContext, asked_pooling: str) -> Engine:
    import transformers

    how = pooling(files, asked_pooling) if files.task == "embed" else pooling(files)
    embeds = files.task == "embed"
    kind = transformers.AutoModel if embeds else transformers.AutoModelForSequenceClassification
    model = _model(kind, files, context)
    native = transformers.AutoTokenizer.from_pretrained(files.path, local_files_only=True).backend_tokenizer
    native.no_truncation()
    native.no_padding()
    config = model.config.get_text_config()
    longest = int(getattr(config, "max_position_embeddings", None) or 512)
    if config.model_type in _SHIFTED:
        longest -= int(config.pad_token_id or 0) + 1
    labels = tuple(str(config.id2label[index]) for index in range(len(config.id2label))) if not embeds else ()
    plain = plain_score(files.config) if files.task == "rank" else False
    info = EngineInfo(
        engine="transformers", engine_version=version("transformers"),
        context_tokens=min(longest, context.context_tokens or longest), vocabulary=int(config.vocab_size),
        generates=False, embeds=embeds, ranks=files.task == "rank", classifies=files.task == "classify",
        top_logprobs=-1, penalties=False, repetition_penalty=False, seeded=False, max_running=1,
        weights_bytes=_weights_bytes(model), precision=_precision(model), labels=labels,
    )  # fmt: skip
    encoder = Encoder(
        model, native, how, info,
        several=files.config.get("problem_type") == "multi_label_classification", plain=plain,
    )  # fmt: skip
    if embeds:
        encoder.measure()
    return encoder


plug = TransformersPlug()
