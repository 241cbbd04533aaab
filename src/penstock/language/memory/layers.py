"""What each layer keeps of the tokens it has seen, as config.json or a GGUF header tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.core.errors import InvalidInput
from penstock.language.gguf import Header
from penstock.language.memory.shape import Layer

# Layers of `layer_types` that keep no keys and values but a state whose size is not known here.
_STATEFUL = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "recurrent_attention", "conv", "hybrid"})
_STATEFUL_MODELS = frozenset({
    "jamba", "bamba", "zamba", "zamba2", "nemotron_h", "falcon_h1", "granitemoehybrid", "recurrent_gemma", "rwkv",
    "rwkv7", "plamo2", "minimax", "kimi_linear",
})  # fmt: skip
# Every so many layers looks at everything, the others at a window; where config.json does not list them. Source: the
# models' configuration classes in transformers, and llama.cpp's llama-model.cpp (set_swa_pattern).
_PATTERNS = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "gemma3n_text": 5, "cohere2": 4, "exaone4": 4,
    "olmo3": 4, "gpt_oss": 2, "gpt-oss": 2, "olmo2": 4,
}  # fmt: skip
_WINDOW_WHERE_GIVEN = frozenset({"mistral", "mixtral", "phi3", "starcoder2", "ministral"})  # on every layer


def number(config: Mapping[str, object], *names: str) -> int | None:
    """The first whole number above 0 that one of these keys has. Raises: InvalidInput for an impossible one."""
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if not 0 <= value < 1 << 40:
            raise InvalidInput(f"{name} = {value} is impossible")
        if value:
            return value
    return None


def needed(config: Mapping[str, object], *names: str) -> int:
    """The same; Raises: InvalidInput also when none is there."""
    found = number(config, *names)
    if found is None:
        raise InvalidInput(f"config.json has no {' or '.join(names)}, so the memory of this model cannot be told")
    return found


def of_config(config: Mapping[str, object]) -> tuple[Layer, ...]:
    """The layers of a Hugging Face model. Raises: InvalidInput naming what is not known."""
    model = str(config.get("model_type", ""))
    if model in _STATEFUL_MODELS:
        raise InvalidInput(f"{model} mixes attention with recurrent states, whose memory is not known here")
    count = needed(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if count > 10_000:
        raise InvalidInput(f"config.json claims {count} layers")
    if model in ("mamba", "mamba2", "falcon_mamba"):
        return (Layer(0, 0, 0, state_bytes=_mamba_bytes(config)),) * count
    hidden = needed(config, "hidden_size", "n_embd", "d_model")
    heads = needed(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    kv_heads = _kv_heads(config, heads)
    size = number(config, "head_dim") or hidden // heads
    latent = number(config, "kv_lora_rank") or 0
    keys, values = size, size
    if latent:
        rope = number(config, "qk_rope_head_dim") or 0
        keys = (number(config, "qk_nope_head_dim") or 0) + rope
        values = needed(config, "v_head_dim")
        kv_heads, latent = heads, latent + rope
    return tuple(Layer(kv_heads, keys, values, window, latent) for window in _windows(config, model, count))


def _kv_heads(config: Mapping[str, object], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # falcon, gpt_bigcode
        return 1
    attention = config.get("attn_config")  # mpt, dbrx
    inner = number(attention, "kv_n_heads") if isinstance(attention, dict) else None
    return number(config, "num_key_value_heads", "num_kv_heads", "multi_query_group_num") or inner or heads


def _windows(config: Mapping[str, object], model: str, count: int) -> list[int | None]:
    window = number(config, "sliding_window", "attention_chunk_size")
    types = config.get("layer_types")
    if isinstance(types, list):
        if strange := [str(kind) for kind in types if str(kind) in _STATEFUL]:
            raise InvalidInput(f"{model} has layers of type {strange[0]}, whose state's memory is not known here")
        if len(types) != count:
            raise InvalidInput(f"config.json has {count} layers, and layer_types for {len(types)}")
        return [window if "sliding" in str(kind) or "chunked" in str(kind) else None for kind in types]
    if window is None:
        return [None] * count
    if "use_sliding_window" in config:  # Qwen: the first `max_window_layers` look at everything
        if not config.get("use_sliding_window"):
            return [None] * count
        whole = number(config, "max_window_layers") or 0
        return [None if index < whole else window for index in range(count)]
    pattern = number(config, "sliding_window_pattern") or _PATTERNS.get(model)
    if pattern:
        return patterned(pattern, window, count)
    return [window if model in _WINDOW_WHERE_GIVEN else None] * count


def patterned(pattern: int, window: int, count: int) -> list[int | None]:
    """Windows where every `pattern`-th layer looks at everything."""
    return [None if (index + 1) % pattern == 0 else window for index in range(count)]


def _mamba_bytes(config: Mapping[str, object]) -> int:
    """Of one layer and sequence, in f32: the convolution's window, and the state. Source: Mamba, section 3."""
    hidden = needed(config, "hidden_size", "d_model")
    inner = number(config, "intermediate_size") or hidden * (number(config, "expand") or 2)
    state, kernel = number(config, "state_size") or 16, number(config, "conv_kernel") or 4
    groups = number(config, "n_groups") or 0
    return 4 * ((inner + 2 * groups * state) * (kernel - 1 if groups else kernel) + inner * state)


def of_gguf(header: Header) -> tuple[Layer, ...]:
    """The layers of a GGUF file. Raises: InvalidInput naming what is not known."""
    own = own_values(header)
    count = number(own, "block_count")
    hidden = number(own, "embedding_length")
    if count is None or hidden is None or count > 10_000:
        raise InvalidInput(f"the GGUF header of a {header.architecture} tells no block_count or embedding_length")
    if header.architecture.startswith("rwkv"):
        raise InvalidInput(f"{header.architecture} keeps recurrent states whose memory is not known here")
    state = _gguf_state(own)
    heads = _each(own.get("attention.head_count"), count, "attention.head_count")
    kv_heads = heads
    if "attention.head_count_kv" in own:
        kv_heads = _each(own["attention.head_count_kv"], count, "attention.head_count_kv")
    if not any(heads) and state:
        return (Layer(0, 0, 0, state_bytes=state),) * count
    most = max(heads, default=0)
    if not most:
        raise InvalidInput("the GGUF header tells no attention.head_count")
    keys = number(own, "attention.key_length") or hidden // most
    values = number(own, "attention.value_length") or hidden // most
    rank = number(own, "attention.kv_lora_rank") or 0
    latent = rank + (number(own, "rope.dimension_count") or 0) if rank and "attention.key_length_mla" in own else 0
    found = []
    for index, window in enumerate(_gguf_windows(own, header.architecture, count)):
        recurrent = bool(state) and kv_heads[index] == 0
        found.append(Layer(kv_heads[index], keys, values, window, latent, state if recurrent else 0))
    return tuple(found)


def own_values(header: Header) -> dict[str, object]:
    """What the header says under the architecture's own name, without it."""
    start = f"{header.architecture}."
    return {key.removeprefix(start): value for key, value in header.values.items() if key.startswith(start)}


def _each(value: object, count: int, name: str) -> list[int]:
    if isinstance(value, list):
        if len(value) < count or not all(isinstance(one, int) and 0 <= one < 1 << 20 for one in value):
            raise InvalidInput(f"{name} in the GGUF header does not tell of {count} layers")
        return [int(one) for one in value[:count]]
    if value is None:
        return [0] * count
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 20:
        raise InvalidInput(f"{name} = {value!r} in the GGUF header is impossible")
    return [value] * count


def _gguf_state(own: Mapping[str, object]) -> int:
    """Of one recurrent layer and sequence, f32. Source: llama.cpp, llama_hparams::n_embd_r and n_embd_s."""
    inner, state = number(own, "ssm.inner_size"), number(own, "ssm.state_size")
    if inner is None or state is None:
        return 0
    kernel, groups = number(own, "ssm.conv_kernel") or 1, number(own, "ssm.group_count") or 0
    return 4 * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)


def _gguf_windows(own: Mapping[str, object], architecture: str, count: int) -> Sequence[int | None]:
    window = number(own, "attention.sliding_window")
    if window is None:
        return [None] * count
    pattern = own.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= count:
        return [window if slides else None for slides in pattern[:count]]
    every = number(own, "attention.sliding_window_pattern") or _PATTERNS.get(architecture)
    return patterned(every, window, count) if every else [None] * count
