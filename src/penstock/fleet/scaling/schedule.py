"""So many replicas at certain times of the week, in a named time zone. Beside another policy it is a floor that moves.

A rule holds from the first moment that a clock on the wall shows `from` to the last that it shows `to`, also on the
days when the clock is put on or back: never shorter than written. It begins `prewarm_s` earlier, so that replicas are
ready when it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest
from penstock.fleet.policy_options import option, read
from penstock.fleet.scaling import Load, Size

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_RULES = 100
KEYS = ("days", "from", "to", "replicas")


@dataclass(frozen=True, slots=True)
class Rule:
    """Minutes count from midnight; `until` of at most `start` is on the day after."""

    days: frozenset[int]  # Monday is 0
    start: int
    until: int
    replicas: int
    text: str


@dataclass(frozen=True, slots=True)
class Options:
    rules: object = field(
        default=(),
        metadata={
            "doc": 'Rules; of those that hold, the largest counts. `days` is `mon-fri`, `sat,sun` or left out for all, '
            "`to` of `00:00` is midnight, and one before `from` is on the day after.",
            "allowed": 'list of `{"days", "from", "to", "replicas"}`',
        },
    )  # fmt: skip
    timezone: str = option("UTC", "Time zone by its name, such as `Europe/Berlin`.")
    prewarm_s: float = option(60.0, "Time by which rules begin earlier.", unit="s", minimum=0, maximum=86_400)
    otherwise: int = option(0, "Replicas while no rule holds.", minimum=0, maximum=100_000)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Options that were read."""

    rules: tuple[Rule, ...]
    zone: ZoneInfo
    prewarm: timedelta
    otherwise: int


class ScheduledSize:
    name = "schedule"

    def options(self, given: Mapping[str, object]) -> Schedule:
        where = f"scaling {self.name}"
        options = read(Options, given, where)
        if not isinstance(options.rules, Sequence) or isinstance(options.rules, str) or not options.rules:
            raise InvalidInput(
                f"{where}: rules is {str(options.rules)[:80]!r}; write at least one, such as "
                '{"days": "mon-fri", "from": "08:00", "to": "18:00", "replicas": 3}'
            )
        if len(options.rules) > MOST_RULES:
            raise InvalidInput(f"{where}: {len(options.rules)} rules; at most {MOST_RULES}")
        try:
            zone = ZoneInfo(options.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidInput(
                f"{where}: timezone {options.timezone[:80]!r} is unknown here; write a name such as Europe/Berlin"
            ) from None
        rules = tuple(_rule(rule, f"{where}: rule {at}") for at, rule in enumerate(options.rules, 1))
        return Schedule(rules, zone, timedelta(seconds=options.prewarm_s), options.otherwise)

    def size(self, options: Schedule, load: Load) -> Size:
        now = datetime.fromtimestamp(load.now, UTC)
        held = [rule for rule in options.rules if _holds(rule, options, now)]
        if not held:
            return Size(options.otherwise, "no rule holds")
        rule = max(held, key=lambda rule: rule.replicas)
        return Size(rule.replicas, f"{rule.text} ({options.zone.key})")


def _holds(rule: Rule, options: Schedule, now: datetime) -> bool:
    today = now.astimezone(options.zone).date()
    # A rule of yesterday may reach into today; one of tomorrow may be warmed up already, up to a day before.
    for day in (today + timedelta(days=shift) for shift in (-1, 0, 1, 2)):
        if day.weekday() in rule.days:
            end_day = day if rule.until > rule.start else day + timedelta(days=1)
            begin = min(_moments(day, rule.start, options.zone))
            if begin - options.prewarm <= now < max(_moments(end_day, rule.until, options.zone)):
                return True
    return False


def _moments(day: date, minutes: int, zone: ZoneInfo) -> list[datetime]:
    """When a clock on the wall shows it: twice on the day it is put back, around the gap on the day it is put on."""
    wall = datetime.combine(day, time(minutes // 60, minutes % 60), zone)
    return [wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]


def _rule(given: object, where: str) -> Rule:
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{where} is {str(given)[:80]!r}; write a mapping with {', '.join(KEYS)}")
    for key in given:
        if key not in KEYS:
            raise InvalidInput(f"{where}: there is no {str(key)[:80]!r}{nearest(str(key), KEYS)}")
    replicas = given.get("replicas")
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        raise InvalidInput(f"{where}: replicas is {replicas!r}; write a whole number of at least 0")
    days_text = str(given.get("days", "mon-sun"))
    start, until = (_minutes(given.get(key, "00:00"), f"{where}: {key}") for key in ("from", "to"))
    shown = f"{days_text} {start // 60:02}:{start % 60:02} to {until // 60:02}:{until % 60:02}"
    return Rule(_days(days_text, where), start, until, replicas, shown)


def _minutes(text: object, where: str) -> int:
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", str(text))
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise InvalidInput(f"{where} is {text!r}; write a time of day in quotes, from '00:00' to '23:59'")
    return int(match[1]) * 60 + int(match[2])


def _days(text: str, where: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.strip().partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise InvalidInput(f"{where}: days is {text[:80]!r}; write {', '.join(DAYS)}, or a range such as mon-fri")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(found)


plug = ScheduledSize()
