"""How every protocol of language models begins: reading a body, finding the model that it names."""

from __future__ import annotations

from typing import Final

from penstock.core.compression import decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, Unsupported
from penstock.core.fields import Fields
from penstock.core.json_body import Buffer, read_object
from penstock.core.model_names import Found, every, find

LONGEST_MODEL: Final = 512  # characters of a model's name


def read_fields(body: Buffer, encoding: str, most_bytes: int, most_depth: int) -> Fields:
    """The members of a body that is encoded so (`Content-Encoding`). Raises: InvalidInput, TooLarge, Unsupported."""
    members = read_object(decompress(body, encoding, most_bytes))
    check_depth(members, most_depth)
    return Fields(members)


def check_depth(members: object, most: int) -> None:
    """Schemas and templates' arguments are walked later by code that calls itself. Raises: InvalidInput."""
    level: list[object] = [members]
    for _ in range(most):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += [value for value in one.values() if isinstance(value, (dict, list))]
            elif isinstance(one, list):
                inner += [value for value in one if isinstance(value, (dict, list))]
        if not inner:
            return
        level = inner
    raise InvalidInput(f"the body is nested more than {most} deep, the most that this server takes")


async def named_model(fields: Fields, door: Door) -> tuple[str, Found]:
    """The model that `model` names, and that name. Without one, the only language model of the server.

    Raises: InvalidInput, NotFound, NotReady.
    """
    name = fields.text("model", LONGEST_MODEL)
    if name is None:
        models = await every(door)
        if len(models) != 1:
            raise fields.missing("model")
        return models[0].card.name, Found(models[0])
    try:
        return name, await find(door, name)
    except Unsupported as error:
        raise InvalidInput(error.message, parameter="model", problem="unsupported_model") from error
