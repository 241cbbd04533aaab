"""Random schemas, random texts of a grammar, and random values of a schema: what the grammars' tests are made of."""

from __future__ import annotations

import json
import random
from typing import Any

PATTERNS = {  # with a way to make a text that matches
    "^[a-c]{2,5}$": lambda rng: "".join(rng.choices("abc", k=rng.randint(2, 5))),
    "x+y?": lambda rng: rng.choice(["x", "xxy", 'a"x', "é\nxy", "\\x"]),
    r"^\d{3}-\d{4}$": lambda rng: f"{rng.randint(0, 999):03}-{rng.randint(0, 9999):04}",
    "^(foo|bar)(,(foo|bar))*$": lambda rng: ",".join(rng.choices(["foo", "bar"], k=rng.randint(1, 4))),
    r'["\\/\t]|é$': lambda rng: rng.choice(['"', "a\\", "\t.", "/é", "aé"]),
}
FORMATS = {
    "date": lambda rng: rng.choice(["2024-02-29", "1999-12-31", "2000-02-29", "0001-01-01"]),
    "time": lambda rng: rng.choice(["00:00:00Z", "23:59:59.125+02:00"]),
    "date-time": lambda rng: rng.choice(["2024-02-29T10:00:00Z", "1970-01-01T00:00:00.5-11:30"]),
    "uuid": lambda rng: f"{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-4abc-8abc-{rng.getrandbits(48):012x}",
    "ipv4": lambda rng: ".".join(str(rng.randint(0, 255)) for _ in range(4)),
    "ipv6": lambda rng: rng.choice(["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "a:b::c"]),
    "email": lambda rng: rng.choice(["a@b.co", "first.last+tag@mail.example.org"]),
}
NAMES = ["a", "ab", "b", "name", "x y", 'q"', "é", "", "k1"]


def schema(rng: random.Random, depth: int = 3, definitions: tuple[str, ...] = ()) -> Any:
    """A random schema that something can match, in the keywords that are kept exactly."""
    kinds = ["null", "boolean", "integer", "number", "string", "enum", "const"]
    if depth > 0:
        kinds += ["array", "array", "object", "object", "object", "anyOf", "types", "allOf", "tuple"]
    if definitions:
        kinds.append("ref")
    return _KINDS[rng.choice(kinds)](rng, depth, definitions)


def whole_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A random schema with definitions that contain themselves."""
    if rng.random() < 0.5:
        found = schema(rng, depth)
        return found
    inner = _object(rng, max(depth - 1, 1), ("node",))
    inner.setdefault("properties", {})["next"] = rng.choice(
        [{"$ref": "#/$defs/node"}, {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
         {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}]
    )  # fmt: skip
    for name, value in list(inner["properties"].items()):
        if "#/$defs" in json.dumps(value) and name in inner.get("required", ()):
            inner["required"] = [other for other in inner["required"] if other != name]
    return {**_object(rng, depth, ("node",)), "$defs": {"node": inner}}


def _integer(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer"}
    low = rng.choice([-(10**6), -123, -7, 0, 1, 5, 99, 1000])
    if rng.random() < 0.6:
        found[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        found[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([20, 33, 117, 10**5])
    if rng.random() < 0.25:
        found["multipleOf"] = rng.choice([2, 3, 7, 10])
    return found


def _number(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "number"}
    low = rng.choice([-1000.5, -7.25, -0.001, 0, 0.1, 1, 2.5, 12.75, 99.999])
    if rng.random() < 0.6:
        found[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        found[rng.choice(["maximum", "exclusiveMaximum"])] = round(low + rng.choice([0.01, 0.5, 1, 30, 1e6]), 6)
    return found


def _string(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    way = rng.random()
    if way < 0.3:
        found["pattern"] = rng.choice(list(PATTERNS))
    elif way < 0.5:
        found["format"] = rng.choice(list(FORMATS))
    if way < 0.2 or 0.5 < way < 0.8:
        found["minLength"] = rng.choice([0, 1, 3])
        found["maxLength"] = found["minLength"] + rng.choice([5, 9, 200])
    return found


def _array(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "array", "items": schema(rng, depth - 1)}
    if rng.random() < 0.5:
        found["minItems"] = rng.randint(0, 3)
    if rng.random() < 0.5:
        found["maxItems"] = found.get("minItems", 0) + rng.randint(0, 3)
    return found


def _tuple(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    first = [schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    found: dict[str, Any] = {"type": "array", "prefixItems": first, "items": rng.choice([False, schema(rng, 0)])}
    if rng.random() < 0.6:
        found["minItems"] = rng.randint(0, len(first))
    if found["items"] is not False and rng.random() < 0.5:
        found["maxItems"] = found.get("minItems", 0) + rng.randint(0, 4)
    return found


def _object(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 4))
    found: dict[str, Any] = {"type": "object", "properties": {}}
    for name in names:
        found["properties"][name] = schema(rng, depth - 1, definitions)
    found["required"] = [
        name for name in names if rng.random() < 0.5 and "$ref" not in json.dumps(found["properties"][name])
    ]
    way = rng.random()
    if way < 0.4:
        found["additionalProperties"] = False
    elif way < 0.6:
        found["additionalProperties"] = schema(rng, 0)
    elif way < 0.7:
        found["additionalProperties"] = True
    if rng.random() < 0.2:
        found["patternProperties"] = {"^k[0-9]+$": schema(rng, 0)}
        found["additionalProperties"] = False
        if "k1" in names:
            del found["patternProperties"]
    if rng.random() < 0.15:
        found["maxProperties"] = max(len(found["required"]), rng.randint(0, 4))
    return found


def _any_of(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    return {"anyOf": [schema(rng, depth - 1, definitions) for _ in range(rng.randint(1, 3))]}


def _types(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    return {"type": rng.sample(["null", "boolean", "integer", "string", "number"], rng.randint(1, 3))}


def _all_of(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    way = rng.random()
    if way < 0.4:
        return {"allOf": [{"type": "integer", "minimum": rng.randint(-9, 9)}, {"maximum": rng.randint(10, 99)}]}
    if way < 0.6:
        return {"allOf": [{"type": "string", "maxLength": 9}, {"pattern": "^[a-z]+$"}, {"pattern": "b"}]}
    one = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "left": schema(rng, depth - 1)},
        "required": ["a"],
    }
    other = {"properties": {"a": {"minimum": 3, "maximum": 40}, "right": schema(rng, depth - 1)}}
    return {"allOf": [one, other]}


def _enum(rng: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    values = [None, True, 0, -1.5, "", 'a"b\\', "é\n", "\u2028", [1, [2]], {"k": "v", "l": []}, "plain", 10, 100]
    return {"enum": rng.sample(values, rng.randint(1, 5))}


_KINDS: dict[str, Any] = {
    "null": lambda *_: {"type": "null"},
    "boolean": lambda *_: {"type": "boolean"},
    "integer": _integer, "number": _number, "string": _string, "array": _array, "tuple": _tuple, "object": _object,
    "anyOf": _any_of, "types": _types, "allOf": _all_of, "enum": _enum,
    "const": lambda rng, depth, definitions: {"const": _enum(rng, depth, definitions)["enum"][0]},
    "ref": lambda rng, depth, definitions: {"$ref": f"#/$defs/{rng.choice(definitions)}"},
}  # fmt: skip


class NoValue(Exception):
    """The generator found no value; the schema may still have some."""


def value(rng: random.Random, of: Any, root: Any, depth: int = 0) -> Any:
    """A value of the schema, most of the time: callers ask the oracle. Properties are in the schema's order."""
    if depth > 8:
        raise NoValue
    if of is True:
        return rng.choice([None, 1, "x", [True], {"k": 2}])
    if "$ref" in of:
        return value(rng, root["$defs"][of["$ref"].rpartition("/")[2]], root, depth + 1)
    if "enum" in of or "const" in of:
        return rng.choice(of.get("enum", [of.get("const")]))
    if "anyOf" in of:
        return value(rng, rng.choice(of["anyOf"]), root, depth + 1)
    if "allOf" in of:
        parts = of["allOf"]
        if "minimum" in parts[0]:
            return rng.randint(parts[0]["minimum"], parts[1]["maximum"])
        if len(parts) == 3:
            return rng.choice(["b", "abc", "zzzb"])
        found = {"a": rng.randint(3, 40)}
        for part, name in ((parts[0], "left"), (parts[1], "right")):
            if rng.random() < 0.7:
                found[name] = value(rng, part["properties"][name], root, depth + 1)
        return found
    kind = of["type"]
    if isinstance(kind, list):
        kind = rng.choice(kind)
    return _VALUES[kind](rng, of, root, depth)


def _integer_value(rng: random.Random, of: Any, root: Any, depth: int) -> int:
    low = max(of.get("minimum", -(10**9)), of.get("exclusiveMinimum", -(10**9)))
    high = min(of.get("maximum", 10**9), of.get("exclusiveMaximum", 10**9))
    found = rng.choice([low, high, low + 1, high - 1, rng.randint(low, high)])
    return found - found % of.get("multipleOf", 1)


def _number_value(rng: random.Random, of: Any, root: Any, depth: int) -> float:
    low = max(of.get("minimum", -1e9), of.get("exclusiveMinimum", -1e9))
    high = min(of.get("maximum", 1e9), of.get("exclusiveMaximum", 1e9))
    return rng.choice([low, high, round(rng.uniform(low, high), rng.randint(0, 4)), int(rng.uniform(low, high))])


def _string_value(rng: random.Random, of: Any, root: Any, depth: int) -> str:
    if "pattern" in of:
        return PATTERNS[of["pattern"]](rng)
    if "format" in of:
        return FORMATS[of["format"]](rng)
    length = rng.randint(of.get("minLength", 0), min(of.get("maxLength", 12), 220))
    return "".join(rng.choices('abc é"\\/\n\t\x01\x7f日😀\u2028', k=length))


def _array_value(rng: random.Random, of: Any, root: Any, depth: int) -> list[Any]:
    first = of.get("prefixItems", [])
    most = of.get("maxItems", of.get("minItems", 0) + 3)
    if of["items"] is False:
        most = min(most, len(first))
    if most < of.get("minItems", 0):
        raise NoValue
    count = rng.randint(of.get("minItems", 0), most)
    return [value(rng, first[at] if at < len(first) else of["items"], root, depth + 1) for at in range(count)]


def _object_value(rng: random.Random, of: Any, root: Any, depth: int) -> dict[str, Any]:
    found = {}
    for name, part in of["properties"].items():
        if name in of.get("required", ()) or rng.random() < 0.5 / (depth + 1):
            found[name] = value(rng, part, root, depth + 1)
    if "patternProperties" in of and rng.random() < 0.7:
        found[f"k{rng.randint(2, 99)}"] = value(rng, of["patternProperties"]["^k[0-9]+$"], root, depth + 1)
    additional = of.get("additionalProperties", not of["properties"])
    if additional is not False and rng.random() < 0.7:
        for name in rng.sample(["other", "A", "aa", "na", "z\n"], 2):
            found[name] = value(rng, additional, root, depth + 1)
    return found


_VALUES: dict[str, Any] = {
    "null": lambda *_: None,
    "boolean": lambda rng, *_: rng.random() < 0.5,
    "integer": _integer_value, "number": _number_value, "string": _string_value, "array": _array_value,
    "object": _object_value,
}  # fmt: skip


class TooLong(Exception):
    """The text grew beyond what a test needs."""


def sample(rng: random.Random, bodies: Any, node: Any, budget: list[int], lean: bool = False) -> str:
    """A random text of a grammar's node. `bodies` are its rules. Beyond the budget, the shortest way is taken."""
    budget[0] -= 1
    if budget[0] < -40_000:
        raise TooLong
    lean = lean or budget[0] < 0
    kind = type(node).__name__
    if kind == "Literal":
        return str(node.text)
    if kind == "Characters":
        low, high = rng.choice(node.ranges)
        return chr(rng.choice([low, high, rng.randint(low, high), min(max(low, 97), high)]))
    if kind == "Reference":
        return sample(rng, bodies, bodies[node.name], budget, lean)
    if kind == "Sequence":
        return "".join(sample(rng, bodies, item, budget, lean) for item in node.items)
    if kind == "Choice":
        item = min(node.items, key=lambda way: _height(way, bodies)) if lean else rng.choice(node.items)
        return sample(rng, bodies, item, budget, lean)
    most = node.least + 3 if node.most is None else node.most
    count = (
        node.least
        if lean
        else rng.choice([node.least, rng.randint(node.least, min(most, node.least + 6)), min(most, node.least + 70)])
    )
    return "".join(sample(rng, bodies, node.item, budget, lean) for _ in range(count))


def _height(node: Any, bodies: Any) -> int:
    heights = bodies.setdefault("@heights", {}) if isinstance(bodies, dict) else {}
    if not heights:
        heights.update(_heights(bodies))
    return _node_height(node, heights)


def _heights(bodies: Any) -> dict[str, int]:
    names = [name for name in bodies if name != "@heights"]
    found = dict.fromkeys(names, 10**6)
    for _ in range(len(names) + 1):
        changed = False
        for name in names:
            height = 1 + _node_height(bodies[name], found)
            if height < found[name]:
                found[name], changed = height, True
        if not changed:
            break
    return found


def _node_height(node: Any, heights: dict[str, int]) -> int:
    kind = type(node).__name__
    if kind == "Reference":
        return heights[node.name]
    if kind == "Sequence":
        return max((_node_height(item, heights) for item in node.items), default=0)
    if kind == "Choice":
        return min((_node_height(item, heights) for item in node.items), default=10**6)
    if kind == "Repeat":
        return 0 if node.least == 0 else _node_height(node.item, heights)
    return 0


def compact(found: Any) -> str:
    """JSON as the grammars write it."""
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))
