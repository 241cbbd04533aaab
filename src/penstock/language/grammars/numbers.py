"""JSON's numbers as nodes: integers and decimals within bounds, exactly, digit by digit.

Numbers without bounds have a bounded count of digits, so that a model cannot write digits without end. Decimals within
bounds have no exponent and at most 15 significant digits: as many as a double keeps apart (IEEE 754, DBL_DIG), so that
what lies within the bounds as text lies within them once read.
"""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

from penstock.language.grammars import automaton
from penstock.language.grammars.nodes import (
    EMPTY,
    NOTHING,
    Literal,
    Node,
    Rules,
    characters,
    choice,
    literal,
    optional,
    repeat,
    sequence,
)

_DIGIT = characters([(48, 57)])
_FIRST = characters([(49, 57)])
SIGNIFICANT = 15


def integer(low: int | None, high: int | None, digits: int) -> Node:
    """The integers from `low` to `high`; without a bound, those of at most `digits` digits (or of one more than the
    bound on the other side has)."""
    digits = max(digits, *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None), 1)
    most = 10**digits - 1
    low, high = -most if low is None else low, most if high is None else high
    if low > high:
        return NOTHING
    above = _natural(max(low, 0), high) if high >= 0 else NOTHING
    below = sequence(Literal("-"), _natural(max(-high, 1), -low)) if low < 0 else NOTHING
    return choice(above, below) if (low, high) != (-most, most) else sequence(optional(Literal("-")), above)


def _natural(low: int, high: int) -> Node:
    """The numbers from `low` to `high`, not below 0."""
    ways: list[Node] = []
    if low == 0:
        ways.append(Literal("0"))
        low = 1
    full: list[int] = []  # lengths of which every number is within
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1)), min(high, 10**length - 1)
        if first > last:
            continue
        if (first, last) == (10 ** (length - 1), 10**length - 1):
            full.append(length)
        else:
            ways.append(_between(str(first), str(last)))
    if full:
        ways.append(sequence(_FIRST, repeat(_DIGIT, full[0] - 1, full[-1] - 1)))
    return choice(*ways)


def _between(low: str, high: str) -> Node:
    """The texts of digits from `low` to `high`, all of one length."""
    if low == high:
        return literal(low)
    rest = len(low) - 1
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeat(_DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return sequence(Literal(low[0]), _between(low[1:], high[1:]))
    first, last = int(low[0]), int(high[0])
    ways = []
    if rest and set(low[1:]) != {"0"}:
        ways.append(sequence(Literal(low[0]), _between(low[1:], "9" * rest)))
        first += 1
    if rest and set(high[1:]) != {"9"}:
        ways.append(sequence(Literal(high[0]), _between("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        ways.append(sequence(characters([(48 + first, 48 + last)]), repeat(_DIGIT, rest, rest)))
    return choice(*ways)


def multiples(whole: Node, of: int, rules: Rules) -> Node:
    """Those of the integers `whole` that are multiples of `of` (above 0). Raises TooManyStates."""
    # State r: the digits so far leave r; the sign is read before. 0 is the start, 1 after a sign, 2 + r the rest.
    edges: list[automaton.Edges] = [
        tuple((48 + d, 48 + d, 2 + (remainder * 10 + d) % of) for d in range(10)) for remainder in (0, 0, *range(of))
    ]
    edges[0] = ((45, 45, 1), *edges[0])
    divisible = automaton.Automaton(tuple(edges), (False, False, True, *(False,) * (of - 1)))
    found = automaton.both(automaton.build(whole, rules), divisible, rules)
    return automaton.nodes(found, rules, "multiple", lambda ranges: characters(ranges))


def any_number(digits: int) -> Node:
    """Every form of JSON's numbers, with bounded counts of digits: below what overflows a double."""
    exponent = sequence(
        characters([(69, 69), (101, 101)]),
        choice(
            sequence(optional(Literal("+")), repeat(_DIGIT, 1, 2)), sequence(Literal("-"), repeat(_DIGIT, 1, 3))
        ),
    )  # fmt: skip
    whole = choice(Literal("0"), sequence(_FIRST, repeat(_DIGIT, 0, digits - 1)))
    fraction = sequence(Literal("."), repeat(_DIGIT, 1, 17))
    return sequence(optional(Literal("-")), whole, optional(fraction), optional(exponent))


def decimal(low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool, rules: Rules) -> Node:
    """The numbers between the bounds, which belong to them unless they are open. None is no bound."""
    ways = []
    if high is None or high >= 0:
        floor, floor_open = (low, low_open) if low is not None and low >= 0 else (Decimal(0), False)
        ways.append(_positive(floor, floor_open, high, high_open, rules))
    if low is None or low < 0:
        ceiling, ceiling_open = (-high, high_open) if high is not None and high < 0 else (Decimal(0), True)
        under = _positive(ceiling, ceiling_open, None if low is None else -low, low_open, rules)
        ways.append(sequence(Literal("-"), under))
    return choice(*ways)


def exact(bound: Decimal) -> bool:
    """Whether the grammar keeps this bound exactly: it has at most 15 significant digits, none too small."""
    exponent = bound.as_tuple().exponent
    return (
        isinstance(exponent, int)
        and len(bound.as_tuple().digits) + max(exponent, 0) <= SIGNIFICANT
        and exponent > -SIGNIFICANT
    )


def _positive(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool, rules: Rules) -> Node:
    """The decimals from `low`, not below 0, to `high`."""
    if high is not None and (low > high or (low == high and (low_open or high_open))):
        return NOTHING
    first, after_first = _parts(low)
    last, after_last = _parts(high) if high is not None else (10**SIGNIFICANT, "")
    room = max(1, len(after_first), len(after_last), SIGNIFICANT - len(str(last if high is not None else first)))
    at_least = _fraction_from(after_first, low_open, room)
    if first == last:
        at_most = _fraction_to(after_last, high_open, room)
        fraction = automaton.both(automaton.build(at_least, rules), automaton.build(at_most, rules), rules)
        return sequence(Literal(str(first)), automaton.nodes(fraction, rules, "fraction", lambda r: characters(r)))
    ways = [sequence(Literal(str(first)), at_least)]
    if first + 1 <= last - 1:
        ways.append(sequence(_natural(first + 1, last - 1), _any_fraction(room)))
    if high is not None:
        ways.append(sequence(Literal(str(last)), _fraction_to(after_last, high_open, room)))
    return choice(*ways)


def _parts(bound: Decimal) -> tuple[int, str]:
    """The whole part, and the digits after the point without zeros at their end."""
    whole = int(bound.to_integral_value(ROUND_FLOOR))
    text = f"{bound - whole:f}"
    return whole, text.partition(".")[2].rstrip("0")


def _any_fraction(room: int) -> Node:
    return optional(sequence(Literal("."), repeat(_DIGIT, 1, room)))


def _more_than_zero(room: int) -> Node:
    """Digits of which one at least is not 0."""
    zeros = room // 2
    return sequence(repeat(Literal("0"), 0, zeros), _FIRST, repeat(_DIGIT, 0, room - zeros - 1))


def _fraction_from(digits: str, is_open: bool, room: int) -> Node:
    """Fractions not below `digits`."""
    if not digits:
        return sequence(Literal("."), _more_than_zero(room)) if is_open else _any_fraction(room)
    node: Node
    rest = room - len(digits)
    node = (_more_than_zero(rest) if rest > 0 else NOTHING) if is_open else repeat(_DIGIT, 0, max(rest, 0))
    for at in range(len(digits) - 1, -1, -1):
        same = sequence(Literal(digits[at]), node)
        larger: Node = NOTHING
        if digits[at] != "9":
            larger = sequence(characters([(ord(digits[at]) + 1, 57)]), repeat(_DIGIT, 0, room - at - 1))
        node = choice(same, larger)
    return sequence(Literal("."), node)


def _fraction_to(digits: str, is_open: bool, room: int) -> Node:
    """Fractions not above `digits`."""
    if not digits:
        return NOTHING if is_open else choice(EMPTY, Literal(".0"))
    node: Node = NOTHING if is_open else EMPTY
    for at in range(len(digits) - 1, -1, -1):
        same = sequence(Literal(digits[at]), node)
        smaller: Node = NOTHING
        if digits[at] != "0":
            smaller = sequence(characters([(48, ord(digits[at]) - 1)]), repeat(_DIGIT, 0, room - at - 1))
        # Fewer digits are a smaller number: those left out are not all zeros.
        node = choice(same, smaller, EMPTY) if at else choice(same, smaller)
    return choice(EMPTY, sequence(Literal("."), node))
