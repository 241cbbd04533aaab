"""What fits: the context, concurrency and cache of a model where nobody has chosen them; why something is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.language.memory.cache import cache_bytes
from penstock.language.memory.engines import EngineTerms
from penstock.language.memory.estimate import Estimate, Wish, estimate, one_sequence
from penstock.language.memory.shape import Shape

USABLE = 0.9  # of free memory: the front, other processes and what an estimate misses need the rest
_MOST_TOKENS = 1 << 24
_MOST_SEQUENCES = 1 << 16
_LEAST_CONTEXT = 256
_FALLBACK_CONTEXT = 4096  # of a model that tells none
# Share of the room beside the weights that a cache may take by itself: less where it is resident whether used or not.
_SHARE_TOUCHED, _SHARE_RESERVED = 0.25, 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Context (tokens of one sequence), sequences at once, bytes of KV cache; what they take, and whether it fits."""

    context_tokens: int
    max_running: int
    kv_cache_bytes: int
    estimate: Estimate
    free_bytes: int

    @property
    def fits(self) -> bool:
        return self.estimate.total <= USABLE * self.free_bytes


def plan(
    shape: Shape,
    terms: EngineTerms,
    free_bytes: int,
    *,
    context_tokens: int | None = None,
    max_running: int | None = None,
    kv_cache_bytes: int | None = None,
    dtype: str = "",
    cache_kind: str = "",
) -> Plan:
    """What is given stays; what is None is chosen so that it fits, if anything does.

    The context is the model's own, halved until one sequence fits into the cache; then as many sequences as fit, at
    most `terms.default_running`. Where sequences share a cache it may hold fewer than all of them at full length.
    """
    kind = cache_kind or terms.cache_kind(shape, dtype or (terms.default_dtype if shape.form != "openvino" else ""))
    bare = estimate(shape, terms, Wish(1, max_running or terms.default_running, dtype, cache_kind, 0))
    room = max(0, int(USABLE * free_bytes) - bare.total)
    share = _SHARE_TOUCHED if terms.touched_at_load else _SHARE_RESERVED
    budget = kv_cache_bytes if kv_cache_bytes is not None else int(room * share)

    def one(tokens: int) -> int:
        return one_sequence(shape, terms, tokens, kind)

    context = context_tokens or shape.context_tokens or _FALLBACK_CONTEXT
    if context_tokens is None:
        while context > _LEAST_CONTEXT and one(context) > budget:
            context //= 2
    elif kv_cache_bytes is None and one(context) > budget:
        budget = room  # a context that was asked for may have all of the room
    running = max_running or terms.default_running
    if max_running is None and not terms.shared:
        while running > 1 and running * one(context) > budget:
            running //= 2
    wanted = running * one(context)
    cache = kv_cache_bytes
    if cache is None:
        given = (
            max_running is not None and not terms.shared
        )  # every sequence has a whole context, so nothing can be cut
        most = budget if terms.modest_cache_bytes is None else min(budget, terms.modest_cache_bytes)
        cache = wanted if given else min(wanted, max(most, one(context)))
    wish = Wish(context, running, dtype, cache_kind, cache)
    return Plan(context, running, cache, estimate(shape, terms, wish), free_bytes)


def largest_concurrency(shape: Shape, terms: EngineTerms, wish: Wish, free_bytes: int) -> int:
    """The most sequences of this context that fit; 0 when not even one does."""
    return _largest(
        lambda count: estimate(shape, terms, replace(wish, concurrency=count, cache_bytes=None)), free_bytes,
        _MOST_SEQUENCES,
    )  # fmt: skip


def largest_context(shape: Shape, terms: EngineTerms, wish: Wish, free_bytes: int) -> int:
    """The longest context of this concurrency that fits, at most the model's own; 0 when none does."""
    return _largest(
        lambda tokens: estimate(shape, terms, replace(wish, context_tokens=tokens, cache_bytes=None)), free_bytes,
        shape.context_tokens or _MOST_TOKENS,
    )  # fmt: skip


def _largest(made: Callable[[int], Estimate], free_bytes: int, most: int) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if made(middle).total <= USABLE * free_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def sequence_bytes(shape: Shape, terms: EngineTerms, planned: Plan) -> tuple[int, int]:
    """Bytes of cache of one sequence of the whole context: as kept, and with all layers whole and no windows."""
    kind = planned.estimate.cache_kind
    whole = cache_bytes(shape, kind, planned.context_tokens, block=terms.block_tokens)
    return one_sequence(shape, terms, planned.context_tokens, kind), whole


def refusal(name: str, shape: Shape, terms: EngineTerms, planned: Plan, wish: Wish) -> str:
    """ "" when the plan fits; else one sentence with the numbers and what to change."""
    if planned.kv_cache_bytes < one_sequence(shape, terms, planned.context_tokens, planned.estimate.cache_kind):
        need = one_sequence(shape, terms, planned.context_tokens, planned.estimate.cache_kind)
        return (
            f"{name}: kv_cache_bytes = {planned.kv_cache_bytes} holds no sequence of {planned.context_tokens} "
            f"tokens, which takes {need}: set kv_cache_bytes to at least that, or a smaller context_tokens"
        )
    if planned.fits:
        return ""
    made = planned.estimate
    ways = []
    usable = int(USABLE * planned.free_bytes)
    room = usable - (made.total - made.cache)
    if terms.shared and room >= one_sequence(shape, terms, planned.context_tokens, made.cache_kind):
        ways.append(f"kv_cache_bytes = {room}")
    least = replace(wish, concurrency=1) if terms.shared else wish  # sequences may wait for each other
    tokens = largest_context(shape, terms, least, planned.free_bytes)
    if _LEAST_CONTEXT <= tokens < planned.context_tokens:
        ways.append(f"context_tokens = {tokens}")
    sequences = largest_concurrency(shape, terms, wish, planned.free_bytes)
    if sequences and not terms.shared:
        ways.append(f"max_running = {sequences}")
    for dtype in ("int8", "int4"):
        if terms.default_dtype and shape.form != "openvino" and wish.dtype != dtype:
            smaller = estimate(shape, terms, replace(wish, dtype=dtype, cache_bytes=None))
            if smaller.total <= USABLE * planned.free_bytes:
                ways.append(f"dtype = {dtype}")
                break
    helps = f"what would fit: {' or '.join(ways)}" if ways else "it needs a larger machine, or smaller weights"
    return (
        f"{name} does not fit: with {terms.name}, {planned.max_running} sequences of {planned.context_tokens} tokens "
        f"take {size(made.total)} (weights {size(made.weights + made.weights_again)}, KV cache {size(made.cache)}, "
        f"activations {size(made.activations)}, engine {size(made.engine)}), and {size(usable)} may be used "
        f"of {size(planned.free_bytes)} that are free; {helps}"
    )


def size(count: int) -> str:
    """Bytes for people: "1.2 GiB"."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{count / (1 << 20):.0f} MiB"
