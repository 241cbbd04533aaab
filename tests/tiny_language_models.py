"""Hugging Face folders of tiny language models with random weights, and what transformers computes of them.

The weights come out of each tensor's name, so that no folder need be kept. `tiny_references.json` is written anew by
`python tiny_language_models.py` where torch and transformers are installed (5.23 and 2.13 wrote it); tests need
neither.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCES = Path(__file__).with_name("tiny_references.json")
END, BEGIN, VOCABULARY = 256, 257, 512
PROMPT = (BEGIN, *((index * 37 + 11) % 256 for index in range(99)))
AHEAD = 8  # greedy tokens after the prompt

_PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 192, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10000.0, "bos_token_id": BEGIN,
    "eos_token_id": END, "dtype": "float16",
}  # fmt: skip
_NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3"}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rope_theta": 500000.0},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 96},
    "llama-3.1": {"model_type": "llama", "rope_scaling": _LLAMA3},
    "llama-3.1-new-form": {"model_type": "llama", "rope_parameters": {"rope_theta": 50000.0, **_LLAMA3}},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-odd-width": {"model_type": "llama", "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 160},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "rms_norm_eps": 1e-6},
    "qwen3-wide-heads-tied": {"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "sliding_window": None, "pad_token_id": END},
}


def config_of(case: str) -> dict[str, Any]:
    """config.json of a case."""
    told = _PLAIN | CASES[case]
    if "rope_parameters" in told:
        told.pop("rope_theta")
    return {"architectures": [f"{_NAMES[told['model_type']]}ForCausalLM"], **told}


def write(folder: Path, case: str, **changes: Any) -> Path:
    """Writes the folder of a case, weights in float16. `changes` are put into its config.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    told = config_of(case) | changes
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    tensors = {name: _values(name, shape) for name, shape in _shapes(told).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    chance = np.random.default_rng(zlib.crc32(name.encode()))
    found = chance.standard_normal(shape)
    if len(shape) == 1:
        return (float("norm" in name) + 0.2 * found).astype(np.float16)
    return (found * (0.1 if "embed" in name else 1.2 / shape[-1] ** 0.5)).astype(np.float16)


def _shapes(told: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = told["hidden_size"], told["intermediate_size"]
    heads, key_heads = told["num_attention_heads"], told["num_key_value_heads"]
    size = told.get("head_dim") or width // heads
    kind = told["model_type"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (told["vocab_size"], width)}
    for layer in range(told["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        outs = {"q": heads * size, "k": key_heads * size, "v": key_heads * size}
        if kind == "phi3":
            found[f"{at}self_attn.qkv_proj.weight"] = (sum(outs.values()), width)
            found[f"{at}mlp.gate_up_proj.weight"] = (2 * inner, width)
        else:
            found |= {f"{at}self_attn.{name}_proj.weight": (out, width) for name, out in outs.items()}
            found |= {f"{at}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        if kind == "qwen2":
            found |= {f"{at}self_attn.{name}_proj.bias": (out,) for name, out in outs.items()}
        if kind == "qwen3":
            found |= {f"{at}self_attn.{name}_norm.weight": (size,) for name in ("q", "k")}
        found[f"{at}self_attn.o_proj.weight"] = (width, heads * size)
        found[f"{at}mlp.down_proj.weight"] = (width, inner)
        found |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    found["model.norm.weight"] = (width,)
    if not told["tie_word_embeddings"]:
        found["lm_head.weight"] = (told["vocab_size"], width)
    return found


def _tokenizer() -> dict[str, Any]:
    """Each byte is a token; `<end>` and `<begin>` follow, and words that no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", "<begin>"]
    words += [f"<unused {index}>" for index in range(len(words), VOCABULARY)]
    made = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>", "<begin>"])
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def _references(folder: Path) -> dict[str, Any]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(AHEAD):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    places = range(0, len(PROMPT), 9)
    return {
        "places": {str(at): [int(found[at].argmax()), round(float(found[at].max()), 6)] for at in places},
        "ahead": ids[len(PROMPT) :],
        "logprobs": [round(float(found[at - 1, ids[at]]), 6) for at in range(len(PROMPT), len(ids))],
    }


def main() -> None:
    import tempfile

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            found[case] = _references(write(Path(folder) / case, case))
            print(case, found[case]["ahead"], found[case]["logprobs"][:2], file=sys.stderr)
    REFERENCES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
