"""What the output must look like: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`."""

from __future__ import annotations

from typing import Final

import msgspec

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields
from penstock.core.json_body import read_json
from penstock.core.language import Format

_LONGEST: Final = (
    1 << 20
)  # characters of a pattern or a grammar; what they cost to compile is limited where that is done
_MOST_CHOICES: Final = 4096
_SCHEMA: Final[msgspec.json.Decoder[dict[str, object] | bool]] = msgspec.json.Decoder(dict[str, object] | bool)


def output_format(fields: Fields) -> tuple[Format, str]:
    """The one format asked for, and the parameter that asks for it. Raises: InvalidInput, also when several do."""
    found = {
        name: form
        for name, form in (
            ("response_format", _response_format(fields)),
            ("structured_outputs", _structured(fields)),
            *_guided(fields),
        )
        if form is not None and form.kind != "text"
    }
    if len(found) > 1:
        one, other = list(found)[:2]
        raise fields.refused(other, f"it without '{one}': an output has one format", "invalid_value")
    return next(((form, name) for name, form in found.items()), (Format(), "response_format"))


def _response_format(fields: Fields) -> Format | None:
    inner = fields.inner("response_format")
    if inner is None:
        return None
    match inner.text("type"):
        case "text":
            return Format()
        case "json_object":
            return Format("json_object")
        case "json_schema":
            named = inner.inner("json_schema")
            if named is None:
                raise inner.missing("json_schema")
            schema = named.take("schema")
            if schema is None:
                raise named.missing("schema")
            named.text("description")
            named.flag("strict")  # the output is held to the schema either way
            return Format("json_schema", _schema(named, "schema", schema), name=named.text("name", 64) or "")
        case "regex":
            return Format("regex", text=_first(inner, "regex", "pattern", "value"))
        case "grammar":
            return _grammar(_first(inner, "grammar", "value"))
        case None:
            raise inner.missing("type")
        case other:
            raise inner.refused(
                "type",
                f"one of text, json_object, json_schema, regex, grammar, but got '{other[:80]}'",
                "invalid_value",
            )


def _structured(fields: Fields) -> Format | None:
    inner = fields.inner("structured_outputs")
    if inner is None:
        return None
    found = [form for _, form in _kinds(inner, "") if form is not None]
    for name in ("disable_fallback", "disable_any_whitespace"):  # vLLM's backends' business; ours is free of whitespace
        inner.flag(name)
    inner.flag("disable_additional_properties")
    if rest := inner.rest():
        raise inner.unsupported(rest[0], "it is not one of json, json_object, regex, choice, grammar")
    if len(found) != 1:
        raise fields.refused("structured_outputs", "exactly one of json, json_object, regex, choice, grammar",
                             "invalid_value")  # fmt: skip
    return found[0]


def _guided(fields: Fields) -> list[tuple[str, Format | None]]:
    return _kinds(fields, "guided_")


def _kinds(fields: Fields, prefix: str) -> list[tuple[str, Format | None]]:
    schema, regex, grammar = fields.take(f"{prefix}json"), fields.text(f"{prefix}regex", _LONGEST), None
    grammar = fields.text(f"{prefix}grammar", _LONGEST)
    choices = fields.texts(f"{prefix}choice", _MOST_CHOICES, _LONGEST)
    return [
        (f"{prefix}json", None if schema is None else Format("json_schema", _schema(fields, f"{prefix}json", schema))),
        (f"{prefix}json_object", Format("json_object") if fields.flag(f"{prefix}json_object") else None),
        (f"{prefix}regex", None if regex is None else Format("regex", text=regex)),
        (f"{prefix}choice", Format("choice", choices=choices) if choices else None),
        (f"{prefix}grammar", None if grammar is None else _grammar(grammar)),
    ]


def _schema(fields: Fields, name: str, value: object) -> dict[str, object] | bool:
    if isinstance(value, str):
        if len(value) > _LONGEST:
            raise fields.refused(name, f"a schema of at most {_LONGEST} characters", "string_above_max_length")
        try:
            return read_json(value.encode("utf-8", "replace"), _SCHEMA, fields.path(name))
        except InvalidInput as error:
            raise InvalidInput(error.message, parameter=fields.path(name), problem="invalid_value") from error
    if not isinstance(value, (dict, bool)):
        raise fields.mistyped(name, value, "an object")
    return value


def _grammar(text: str) -> Format:
    """GBNF's rules are made with `::=`, Lark's with a colon."""
    return Format("ebnf" if "::=" in text else "lark", text=text)


def _first(fields: Fields, *names: str) -> str:
    found = [text for name in names if (text := fields.text(name, _LONGEST)) is not None]
    if not found:
        raise fields.missing(names[0])
    return found[0]
