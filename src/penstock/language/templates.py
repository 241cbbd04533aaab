"""The chat templates of a model: found beside its weights or in its header, by name where there are several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from penstock.core.errors import InvalidInput, LoadError, Unsupported
from penstock.language.files import ModelFiles, read_json
from penstock.language.guard import Guard
from penstock.language.template import Template
from penstock.language.tokenizer import Tokenizer

DEFAULT, TOOL_USE = "default", "tool_use"
_MOST_KEPT = 16  # compiled templates of callers

# The echo engine says its prompt's last line, which is thus the last line of the last message.
_ECHO = "{% for message in messages %}{{ message.role }}:\n{{ message.content }}\n{% endfor %}"


class Templates:
    """The templates of one model; without any, chat is refused. `sources` by name, "default" the one for all else."""

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer) -> None:
        self._special = {
            f"{name}_token": tokenizer.token(token)
            for name, token in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("pad", tokenizer.pad))
            if token is not None
        }
        self._guard = Guard(tokenizer.special_texts)
        self.named = {name: Template(source, self._special, self._guard) for name, source in sources.items()}
        self._of_callers: OrderedDict[str, Template] = OrderedDict()

    @property
    def default(self) -> Template | None:
        return self.named.get(DEFAULT) or next(iter(self.named.values()), None)

    def pick(self, tools: bool = False, override: str = "") -> Template:
        """The template for a conversation: `override` (a template's name, or its text), else the one for tools, else
        the default.

        A caller's own text can use much memory: it is for those who may run code here anyway.
        Raises: Unsupported when the model has none; InvalidInput for a text that cannot be compiled.
        """
        if override:
            return self.named.get(override) or self._compiled(override)
        found = (self.named.get(TOOL_USE) if tools else None) or self.default
        if found is None:
            raise Unsupported("this model has no chat template: use completions, or give it one with --chat-template")
        return found

    def _compiled(self, source: str) -> Template:
        found = self._of_callers.get(source)
        if found is None:
            try:
                found = Template(source, self._special, self._guard)
            except LoadError as error:
                raise InvalidInput(str(error)) from None
            self._of_callers[source] = found
            if len(self._of_callers) > _MOST_KEPT:
                self._of_callers.popitem(last=False)
        return found


def open_templates(files: ModelFiles, tokenizer: Tokenizer, override: str = "") -> Templates:
    """The chat templates of the model in `files`, or `override` (a template's text) instead of them.

    Raises: LoadError when one cannot be read or compiled.
    """
    if override:
        return Templates({DEFAULT: override}, tokenizer)
    try:
        return Templates(sources(files), tokenizer)
    except InvalidInput as error:
        raise LoadError(str(error)) from error


def sources(files: ModelFiles) -> dict[str, str]:
    """The texts of the templates by name. Raises: InvalidInput."""
    if files.kind == "echo":
        return {DEFAULT: _ECHO}
    if files.kind == "gguf":
        return _of_header(files.config)
    if not files.path.is_dir():
        return {}
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (files.path / name).exists():
            found |= _of_config(read_json(files.path / name).get("chat_template"))
    if (alone := files.path / "chat_template.jinja").exists():
        found[DEFAULT] = _text(alone)
    for path in sorted((files.path / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def _of_header(values: Mapping[str, object]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    found = {key[len(prefix) + 1 :] or DEFAULT: text for key, text in values.items() if key.startswith(prefix)}
    return {name: text for name, text in found.items() if isinstance(text, str) and text.strip()}


def _of_config(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value if isinstance(value, list) else []
    return {
        str(entry["name"]): str(entry["template"])
        for entry in entries
        if isinstance(entry, dict) and "name" in entry and "template" in entry
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}") from None
