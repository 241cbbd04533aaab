"""What users write about a deployment, in `penstock.yaml`, on the command line and through the HTTP API.

A document is a mapping as YAML and JSON have it. `Deployment` is the whole wish: what is left out has its default, and
what is unknown is refused. `Run` is the part of it that a replica runs: a change there makes a new revision; all else
(bounds, scaling, traffic, routes) belongs to the deployment and acts on the revisions that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from penstock.core.coercion import Mismatch, coerce
from penstock.core.errors import InvalidInput
from penstock.core.nearest import nearest

Value = bool | int | float | str
"""A plain option value; `Json` may nest."""

STRATEGIES = ("rolling", "blue-green", "recreate")
BALANCES = ("auto", "prefix", "least", "round_robin", "affinity")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?")


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all parts: immutable, and closed to unknown keys."""


class Run(_Document, frozen=True):
    """What a replica runs. Equal runs are one revision."""

    model: str = ""  # a path, an archive, or `file.py:Name`; absolute once it was read
    graph: str = ""  # or a graph's file
    trust: bool = False  # pickled files of `model` may be opened
    options: Mapping[str, object] = {}  # model options, as in [models.NAME] of penstock.toml
    server: Mapping[str, object] = {}  # server options, as in [server]; addresses and ports are the platform's
    env: Mapping[str, str] = {}
    secrets: Mapping[
        str, str
    ] = {}  # variable -> `env:NAME` or `file:/path`; read where the replica starts, never stored
    requirements: str = ""  # a locked requirements file; the replica runs in an environment made of it
    content: str = ""  # tells changed files at the same paths; the controller fills it in when it accepts a wish
    cpu: float | None = None  # cores; None is no limit
    memory_bytes: int | None = None
    gpu: float = 0.0  # how many, or a share of one


class Replicas(_Document, frozen=True):
    """Bounds. With `minimum` 0 an idle deployment has no replica."""

    minimum: int = 1
    maximum: int = 1
    zero_after_s: float = 30.0  # without a request, until the last replica goes; scaling may keep it longer


class Scaler(_Document, frozen=True):
    """One scaling policy with its options. Of several, the largest answer counts."""

    policy: str = "concurrency"
    options: Mapping[str, object] = {}


class Rollout(_Document, frozen=True):
    """How replicas of an old revision give way to those of a new one."""

    strategy: str = "rolling"  # rolling | blue-green | recreate
    surge: int = 1  # rolling: replicas above the wished number while it lasts
    ready_timeout_s: float = 120.0  # a revision that is not ready by then has failed
    drain_s: float = 30.0  # what a replica that goes has for its requests in flight
    keep_previous_s: float = 60.0  # replicas of the revision before stay that long, so that going back takes no start


class Sticky(_Document, frozen=True):
    """What keeps a caller on one arm: the value of a header or a cookie, hashed. `by` is header | cookie."""

    by: str = "header"
    name: str = "penstock-user"


class Shadow(_Document, frozen=True):
    """A copy of `share` of the requests goes to `revision` too; its answer is compared and dropped."""

    revision: int
    share: float = 1.0


class Traffic(_Document, frozen=True):
    """Who gets which share. `policy` names a plug of `fleet.traffic`; "latest" is all to the newest ready revision."""

    policy: str = "latest"
    options: Mapping[str, object] = {}
    sticky: Sticky | None = None
    shadow: Shadow | None = None


class Match(_Document, frozen=True):
    """A request that fits every given part belongs to the deployment. Without any match, the model's name in the path,
    body or metadata decides."""

    host: str = ""
    path_prefix: str = ""
    headers: Mapping[str, str] = {}


class Requests(_Document, frozen=True):
    """How the router treats the deployment's requests."""

    # Of callers that bring no deadline. Unsaid: 60, and 600 on the paths of language models, whose answers take long.
    timeout_s: float | None = None
    max_waiting: int = 1000  # requests held while no replica is ready or all are full
    max_in_flight: int | None = None  # per replica; what is above waits in the router, fairly between tenants
    idempotent: bool = False  # sending a request twice does no harm: lost ones are sent again
    retry_budget: float = 0.2  # retries, as a share of the requests of the last 10 s
    hedge_after_s: float | None = None  # idempotent only: ask a second replica when there is no answer by then
    affinity: Sticky | None = None  # keeps a session on one replica
    balance: str = "auto"  # which replica; auto: `prefix` for language models, else the one of two with less in flight


class Deployment(_Document, frozen=True):
    """The whole wish for one endpoint."""

    name: str
    run: Run
    replicas: Replicas = Replicas()
    scaling: tuple[Scaler, ...] = (Scaler(),)
    rollout: Rollout = Rollout()
    traffic: Traffic = Traffic()
    routes: tuple[Match, ...] = ()
    requests: Requests = Requests()


TIMEOUT_S: Final = 60.0
LANGUAGE_TIMEOUT_S: Final = 600.0
"""What `requests.timeout_s` is where a deployment does not say it."""

_KINDS: Mapping[str, str] = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a table", "null": "nothing",
}  # fmt: skip


def read(name: str, document: Mapping[str, object]) -> Deployment:
    """The deployment of a document: `Deployment`'s keys without `name`, and `Run`'s keys beside them.

    Short forms: `replicas: 0..4` or `replicas: 2`, `traffic: thompson`, `scaling: {…}` for one, `memory: 2GiB` for
    `memory_bytes`.

    Raises:
        InvalidInput: an unknown key (naming the nearest), a wrong type or range, or things that exclude each other.
    """
    deployment = read_again(name, document)
    check(deployment)
    return deployment


def read_again(name: str, document: Mapping[str, object]) -> Deployment:
    """As `read`, of a document that was accepted before: ranges are not judged, so that a rule which is newer than the
    document takes nothing away. Raises: InvalidInput: an unknown key, or a wrong type."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"deployment {name[:80]!r}: a name is 1 to 63 of a-z 0-9 - _ . with a letter or digit at both ends"
        )
    where = f"deployment {name}"
    top = dict(document)
    run: dict[str, object] = {key: top.pop(key) for key in (*Run.__struct_fields__, "memory") if key in top}
    if "memory" in run:
        if "memory_bytes" in run:
            raise InvalidInput(f"{where}: memory and memory_bytes are the same; write one")
        run["memory_bytes"] = _size(where, run.pop("memory"))
    if isinstance(top.get("replicas"), (int, str)):
        top["replicas"] = _bounds(where, top["replicas"])
    if isinstance(top.get("traffic"), str):
        top["traffic"] = {"policy": top["traffic"]}
    if isinstance(top.get("scaling"), Mapping):
        top["scaling"] = [top["scaling"]]
    return _convert(where, {**top, "name": name, "run": run})


def check(wish: Deployment) -> None:
    """Raises: InvalidInput: a value out of its range, or things that exclude each other."""
    for problem in (*_problems_of_run(wish.run), *_problems(wish)):
        raise InvalidInput(f"deployment {wish.name}: {problem}")


def write(deployment: Deployment) -> dict[str, object]:
    """The document of a deployment, with every default written out; `read` of it gives the same back."""
    document: dict[str, object] = msgspec.to_builtins(deployment)
    del document["name"]
    run = document.pop("run")
    assert isinstance(run, dict)
    return {**run, **document}


def _convert(where: str, document: Mapping[str, object]) -> Deployment:
    try:
        return msgspec.convert(document, Deployment)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.match(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?", text)
        if unknown is None:
            raise InvalidInput(f"{where}: {in_words(error)}") from None
        at = unknown[2] or ""
        kinds = {
            "": Deployment, "run": Run, "replicas": Replicas, "rollout": Rollout, "traffic": Traffic,
            "requests": Requests, "traffic.sticky": Sticky, "traffic.shadow": Shadow, "requests.affinity": Sticky,
        }  # fmt: skip
        known = [*kinds[at].__struct_fields__] if at in kinds else []
        if not at:
            known = [one for one in known if one not in ("name", "run")] + [*Run.__struct_fields__, "memory"]
        raise InvalidInput(
            f"{where}: there is no {'.'.join(filter(None, (at, unknown[1])))!r}{nearest(unknown[1], known)}"
        ) from None


def in_words(error: msgspec.ValidationError) -> str:
    """A wrong type as who wrote the document would say it: `env: text is allowed, and there is a whole number`."""
    wrong = re.fullmatch(r"Expected `(.+?)`, got `(.+?)` - at `(?:key in )?\$\.?(?:run\.?)?(.*)`", str(error))
    if wrong is None:
        return str(error)
    allowed = " or ".join(_KINDS.get(kind, kind) for kind in wrong[1].split(" | ") if kind != "null")
    return (
        f"{wrong[3].removesuffix('[...]') or 'it'}: {allowed} is allowed, and there is {_KINDS.get(wrong[2], wrong[2])}"
    )


def _size(where: str, value: object) -> object:
    try:
        return coerce(value, int, "bytes")
    except Mismatch as mismatch:
        raise InvalidInput(f"{where}: memory is {value!r}; write {mismatch}") from None


def _bounds(where: str, value: object) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", str(value).strip())
    if match is None or isinstance(value, bool):
        raise InvalidInput(f"{where}: replicas is {value!r}; write a number, or bounds such as 0..4")
    return {"minimum": int(match[1]), "maximum": int(match[2] or match[1])}


def _problems_of_run(run: Run) -> Iterator[str]:
    if bool(run.model) == bool(run.graph):
        yield "give either model or graph"
    if run.cpu is not None and run.cpu <= 0:
        yield f"cpu is {run.cpu:g}; it is above 0"
    if run.memory_bytes is not None and run.memory_bytes < 1 << 20:
        yield "memory is at least 1MiB"
    if run.gpu < 0 or (run.gpu > 1 and run.gpu != int(run.gpu)):
        yield f"gpu is {run.gpu:g}; a whole number, or a share between 0 and 1"
    for variable, source in run.secrets.items():
        if not source.startswith(("env:", "file:")):
            yield f"secret {variable} names where it is read from, env:NAME or file:/path, never its value"


def _problems(wish: Deployment) -> Iterator[str]:
    replicas, rollout, traffic, requests = wish.replicas, wish.rollout, wish.traffic, wish.requests
    if replicas.minimum < 0 or replicas.maximum < max(1, replicas.minimum):
        yield "replicas are 0 ≤ minimum ≤ maximum, and maximum is at least 1"
    if replicas.zero_after_s < 0:
        yield "replicas.zero_after_s is at least 0"
    if rollout.strategy not in STRATEGIES:
        yield f"rollout.strategy is {rollout.strategy!r}; one of {', '.join(STRATEGIES)}"
    if rollout.surge < 1:
        yield "rollout.surge is at least 1"
    if rollout.ready_timeout_s <= 0 or (requests.timeout_s is not None and requests.timeout_s <= 0):
        yield "rollout.ready_timeout_s and requests.timeout_s are above 0"
    if min(rollout.drain_s, rollout.keep_previous_s) < 0:
        yield "rollout.drain_s and rollout.keep_previous_s are at least 0"
    if requests.max_waiting < 0:
        yield "requests.max_waiting is at least 0"
    if requests.max_in_flight is not None and requests.max_in_flight < 1:
        yield "requests.max_in_flight is at least 1; leave it out for no limit"
    if requests.hedge_after_s is not None and not requests.idempotent:
        yield "requests.hedge_after_s needs requests.idempotent"
    if not 0 <= requests.retry_budget <= 1:
        yield "requests.retry_budget is between 0 and 1"
    if requests.balance not in BALANCES:
        yield (
            f"requests.balance is {requests.balance!r}; one of {', '.join(BALANCES)}"
            f"{nearest(requests.balance, BALANCES)}"
        )
    if requests.balance == "affinity" and requests.affinity is None:
        yield "requests.balance: affinity needs requests.affinity, which says how sessions are told apart"
    if requests.affinity is not None and requests.balance not in ("auto", "affinity"):
        yield f"requests.balance {requests.balance} leaves requests.affinity without an effect; take affinity or auto"
    if traffic.shadow is not None and not 0 < traffic.shadow.share <= 1:
        yield "traffic.shadow.share is above 0 and at most 1"
    if not wish.scaling:
        yield "scaling has at least one policy; leave it out for the usual one"
    for sticky in (traffic.sticky, requests.affinity):
        if sticky is not None and (sticky.by not in ("header", "cookie") or not sticky.name):
            yield "by is header or cookie, with a name"
