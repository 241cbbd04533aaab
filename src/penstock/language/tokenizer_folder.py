"""The tokenizer of a folder: tokenizer.json, or the older files that came before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidInput, LoadError
from penstock.language.files import ModelFiles, read_json
from penstock.language.tokenizer import NativeTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native

_MOST_BYTES = 256 << 20  # the largest in public use is about 35 MB


def folder_tokenizer(files: ModelFiles) -> NativeTokenizer:
    """The tokenizer in a Hugging Face, OpenVINO or sentence-transformers folder. Raises: LoadError."""
    folder = files.path
    try:
        config = _object(folder / "tokenizer_config.json")
        generation = _object(folder / "generation_config.json")
        names = {**_object(folder / "special_tokens_map.json"), **config}
        native = _native(folder, config)
        _add_listed(native, config)
    except InvalidInput as error:
        raise LoadError(str(error)) from error

    def named(kind: str) -> int | None:
        text = _text(names.get(f"{kind}_token"))
        found: int | None = native.token_to_id(text) if text else None
        if found is None:
            told = _ids(generation.get(f"{kind}_token_id")) or _ids(files.config.get(f"{kind}_token_id"))
            return told[0] if told else None
        return found

    ends = _ids(generation.get("eos_token_id")) or _ids(files.config.get("eos_token_id"))
    bos, eos = named("bos"), named("eos")
    if bos is None and eos is None:  # encoders call them otherwise
        bos, eos = named("cls"), named("sep")
    return NativeTokenizer(native, bos=bos, eos=eos, pad=named("pad"), ends=ends)


def _native(folder: Path, config: Mapping[str, object]) -> Native:
    from tokenizers import Tokenizer as Native

    whole = folder / "tokenizer.json"
    if whole.exists():
        if whole.stat().st_size > _MOST_BYTES:
            raise LoadError(f"{whole} is larger than {_MOST_BYTES >> 20} MiB")
        try:
            return Native.from_file(str(whole))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise LoadError(f"{whole} cannot be read: {error}") from error
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _byte_level(folder)
    if (folder / "vocab.txt").exists():
        return _word_piece(folder, config)
    hint = (
        "; this model has only tokenizer.model (SentencePiece): write tokenizer.json with "
        "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers"
        if (folder / "tokenizer.model").exists()
        else "; copy tokenizer.json and tokenizer_config.json from the model that this was made of"
        if (folder / "openvino_model.xml").exists()
        else ""
    )
    raise LoadError(f"{folder} has no tokenizer.json{hint}")


def _byte_level(folder: Path) -> Native:
    """GPT-2's older form: vocab.json and merges.txt, with added_tokens.json beside."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Native

    native = Native(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    added = sorted(_object(folder / "added_tokens.json").items(), key=lambda item: (_ids(item[1]) or [0])[0])
    native.add_special_tokens([AddedToken(text, special=True, normalized=False) for text, _ in added])
    names = [_text(value) for value in _object(folder / "special_tokens_map.json").values()]
    native.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in names if text])
    return native


def _word_piece(folder: Path, config: Mapping[str, object]) -> Native:
    """BERT's older form: vocab.txt, one token a line."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Native

    model = models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]")
    native = Native(model)
    native.normalizer = normalizers.BertNormalizer(lowercase=config.get("do_lower_case", True) is not False)
    native.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    native.decoder = decoders.WordPiece(prefix="##")
    known = [text for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if native.token_to_id(text) is not None]
    native.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in known])
    begin, end = native.token_to_id("[CLS]"), native.token_to_id("[SEP]")
    if begin is not None and end is not None:
        native.post_processor = processors.BertProcessing(("[SEP]", end), ("[CLS]", begin))
    return native


def _add_listed(native: Native, config: Mapping[str, object]) -> None:
    """Adds tokens that tokenizer_config.json lists and tokenizer.json lacks, or does not know as control tokens."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    there = native.get_added_tokens_decoder()
    for number, entry in sorted(listed.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0):
        text = _text(entry)
        special = isinstance(entry, dict) and entry.get("special") is True
        if not text or not number.isdigit() or (int(number) in there and there[int(number)].special == special):
            continue
        found = native.token_to_id(text)
        if found not in (None, int(number)) or (found is None and int(number) != native.get_vocab_size()):
            continue  # it would get another id than the model was trained with
        token = AddedToken(text, special=special, normalized=False)
        if special:
            native.add_special_tokens([token])
        else:
            native.add_tokens([token])


def _object(path: Path) -> Mapping[str, object]:
    return read_json(path) if path.exists() else {}


def _text(value: object) -> str:
    """The text of a token as these files write it: itself, or an object with `content`."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def _ids(value: object) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [token for token in found if isinstance(token, int) and not isinstance(token, bool)]
