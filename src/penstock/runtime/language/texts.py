"""What of a language model lies in the front: its tokenizer, and its chat templates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, Tool
from penstock.language import files
from penstock.language.template import Template
from penstock.language.templates import Templates, open_templates
from penstock.language.tokenizer import Tokenizer, open_tokenizer
from penstock.runtime.language.reading import Forms, forms

# Characters that are tokenised on the loop: a millisecond's worth. Longer texts go to a thread.
_SHORT = 2000
_MOST_FORMS = 16


@dataclass(frozen=True, slots=True)
class Texts:
    """One version's. `created` are seconds since the epoch, of its files. Callers may bring templates of their own with
    `free_templates`."""

    tokenizer: Tokenizer
    templates: Templates
    created: int
    free_templates: bool
    architecture: str = ""
    _forms: dict[str, Forms] = field(default_factory=dict)  # by a template's text

    async def encode(self, text: str, special: bool = True, *, controls: bool = True) -> list[int]:
        """The ids of a text. Control tokens that it spells out are taken as such with `controls`."""
        if len(text) <= _SHORT:
            return self.tokenizer.encode(text, special, controls=controls)
        return await asyncio.to_thread(self.tokenizer.encode, text, special, controls=controls)

    async def decode(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) <= _SHORT:
            return self.tokenizer.decode(token_ids, False)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids, False)

    async def prompt(self, ask: Ask, tools: Sequence[Tool], arguments: Mapping[str, object]) -> tuple[str, list[int]]:
        """What the messages of `ask` become: text, and ids.

        Raises: InvalidInput; Unsupported without a template.
        """
        size = sum(len(message.content or "") for message in ask.messages or ()) + 500 * len(tools)
        if size <= _SHORT and not ask.template:
            return self._prompt(ask, tools, arguments)
        return await asyncio.to_thread(self._prompt, ask, tools, arguments)

    def _prompt(self, ask: Ask, tools: Sequence[Tool], arguments: Mapping[str, object]) -> tuple[str, list[int]]:
        return self.template(ask, bool(tools)).encode(
            self.tokenizer, list(ask.messages or ()), tools, add_generation_prompt=ask.add_generation_prompt,
            continue_last=ask.continue_last, arguments=arguments, now_s=time.time(),
        )  # fmt: skip

    def template(self, ask: Ask, tools: bool) -> Template:
        """The chat template for a conversation. Raises: InvalidInput, Unsupported."""
        if ask.template and ask.template not in self.templates.named and not self.free_templates:
            known = ", ".join(self.templates.named) or "none"
            raise InvalidInput(
                f"{ask.names.get('template', 'template')}: this server takes no templates of callers, only the model's "
                f"own by name ({known}); its owner allows others with `trust`",
                parameter=ask.names.get("template", "template"), problem="unsupported_parameter",
            )  # fmt: skip
        return self.templates.pick(tools, ask.template)

    def forms(self, template: Template) -> Forms:
        """How the output of this template's model is read."""
        found = self._forms.get(template.source)
        if found is None:
            found = self._forms[template.source] = forms(template, self.tokenizer, self.architecture)
            if len(self._forms) > _MOST_FORMS:
                del self._forms[next(iter(self._forms))]
        return found


def read(path: Path, own_template: str = "", free_templates: bool = False) -> Texts:
    """What lies at `path`, with `own_template` (a file, or a text) instead of the model's. Blocks.

    Raises: LoadError, InvalidInput.
    """
    found = files.look(path)
    tokenizer = open_tokenizer(found)
    override = own_template
    if own_template and "{" not in own_template:
        try:
            override = Path(own_template).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise InvalidInput(f"the chat template {own_template} cannot be read: {error}") from None
    return Texts(
        tokenizer,
        open_templates(found, tokenizer, override),
        int(path.stat().st_mtime),
        free_templates,
        found.architecture,
    )
