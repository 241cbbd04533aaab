"""Figures of language models as Prometheus's families, under our names and under those that vLLM's dashboards expect.

Source of the second: vLLM, vllm/v1/metrics/loggers.py. Its label `engine`, the number of a data-parallel rank there, is
the model's version here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from penstock.telemetry.language import Durations, LanguageSnapshot

_OURS = ("model", "version")
_THEIRS = ("model_name", "engine")

# Name, kind, unit, labels, meaning. docs/metrics.md is checked by it.
TABLE: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("penstock_llm_first_token_seconds", "histogram", "seconds", _OURS, "From a request's arrival to its first token"),
    ("penstock_llm_inter_token_seconds", "histogram", "seconds", _OURS, "From one token of an answer to the next"),
    ("penstock_llm_request_seconds", "histogram", "seconds", _OURS, "From a request's arrival to its last token"),
    ("penstock_llm_queue_seconds", "histogram", "seconds", _OURS, "From entering the queue to an engine's taking it"),
    ("penstock_llm_prompt_tokens_total", "counter", "tokens", _OURS, "Tokens of prompts"),
    ("penstock_llm_generation_tokens_total", "counter", "tokens", _OURS, "Tokens generated"),
    ("penstock_llm_cached_tokens_total", "counter", "tokens", _OURS, "Tokens of prompts found in the prefix cache"),
    ("penstock_llm_finished_total", "counter", "requests", (*_OURS, "reason"), "Requests that ended well, by how"),
    ("penstock_llm_running", "gauge", "requests", _OURS, "Generations in an engine now"),
    ("penstock_llm_waiting", "gauge", "requests", _OURS, "Generations that wait for an engine"),
    ("penstock_llm_kv_used_tokens", "gauge", "tokens", _OURS, "Tokens in the KV cache, as an engine said last"),
    ("penstock_llm_kv_capacity_tokens", "gauge", "tokens", _OURS, "Tokens that the KV cache holds, where it is known"),
    ("penstock_llm_caller_requests_total", "counter", "requests", (*_OURS, "caller"), "Requests, by whose key came"),
    ("penstock_llm_caller_tokens_total", "counter", "tokens", (*_OURS, "caller", "kind"), "Tokens, by whose key came"),
    ("vllm:time_to_first_token_seconds", "histogram", "seconds", _THEIRS, "As penstock_llm_first_token_seconds"),
    ("vllm:inter_token_latency_seconds", "histogram", "seconds", _THEIRS, "As penstock_llm_inter_token_seconds"),
    ("vllm:request_time_per_output_token_seconds", "histogram", "seconds", _THEIRS, "An answer's mean"),
    ("vllm:e2e_request_latency_seconds", "histogram", "seconds", _THEIRS, "As penstock_llm_request_seconds"),
    ("vllm:request_queue_time_seconds", "histogram", "seconds", _THEIRS, "As penstock_llm_queue_seconds"),
    ("vllm:prompt_tokens_total", "counter", "tokens", _THEIRS, "As penstock_llm_prompt_tokens_total"),
    ("vllm:generation_tokens_total", "counter", "tokens", _THEIRS, "As penstock_llm_generation_tokens_total"),
    ("vllm:prefix_cache_queries_total", "counter", "tokens", _THEIRS, "Tokens of prompts looked up there"),
    ("vllm:prefix_cache_hits_total", "counter", "tokens", _THEIRS, "As penstock_llm_cached_tokens_total"),
    ("vllm:request_success_total", "counter", "requests", (*_THEIRS, "finished_reason"), "The same"),
    ("vllm:num_requests_running", "gauge", "requests", _THEIRS, "As penstock_llm_running"),
    ("vllm:num_requests_waiting", "gauge", "requests", _THEIRS, "As penstock_llm_waiting"),
    ("vllm:kv_cache_usage_perc", "gauge", "1", _THEIRS, "Share of the KV cache in use, 0 to 1"),
    ("vllm:gpu_cache_usage_perc", "gauge", "1", _THEIRS, "The same, as older dashboards call it"),
)  # fmt: skip


def families(snapshots: Iterable[LanguageSnapshot]) -> Iterator[Metric]:
    """Everything about language models, as Prometheus's families; nothing without one."""
    made: dict[str, Metric] = {}
    for name, kind, _, labels, meaning in TABLE:
        family = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[kind]
        made[name] = family(name, meaning, labels=labels)
    for one in snapshots:
        _add(made, one)
    yield from (family for family in made.values() if family.samples)


def _add(made: dict[str, Metric], one: LanguageSnapshot) -> None:
    sums, key = one.sums, (one.model, one.version)

    def histogram(name: str, found: Durations) -> None:
        family = made[name]
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(key, found.buckets(), found.sum_s)

    def value(name: str, number: float, *labels: str) -> None:
        family = made[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric((*key, *labels), number)

    durations: tuple[tuple[tuple[str, ...], Durations], ...] = (
        (("penstock_llm_first_token_seconds", "vllm:time_to_first_token_seconds"), sums.first),
        (("penstock_llm_inter_token_seconds", "vllm:inter_token_latency_seconds"), sums.gaps),
        (("vllm:request_time_per_output_token_seconds",), sums.per_token),
        (("penstock_llm_request_seconds", "vllm:e2e_request_latency_seconds"), sums.whole),
        (("penstock_llm_queue_seconds", "vllm:request_queue_time_seconds"), sums.queue),
    )
    for names, found in durations:
        for name in names:
            histogram(name, found)
    used = sums.load.kv_used if one.running else 0  # an engine says it with its tokens only
    share = used / sums.load.kv_capacity if sums.load.kv_capacity else 0.0
    numbers: tuple[tuple[tuple[str, ...], float], ...] = (
        (("penstock_llm_prompt_tokens_total", "vllm:prompt_tokens_total", "vllm:prefix_cache_queries_total"),
         sums.prompt_tokens),
        (("penstock_llm_generation_tokens_total", "vllm:generation_tokens_total"), sums.generation_tokens),
        (("penstock_llm_cached_tokens_total", "vllm:prefix_cache_hits_total"), sums.cached_tokens),
        (("penstock_llm_running", "vllm:num_requests_running"), one.running),
        (("penstock_llm_waiting", "vllm:num_requests_waiting"), one.waiting),
        (("penstock_llm_kv_used_tokens",), used),
        (("penstock_llm_kv_capacity_tokens",), sums.load.kv_capacity),
        (("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), share),
    )  # fmt: skip
    for names, number in numbers:
        for name in names:
            value(name, number)
    for reason, count in sums.finished.items():
        value("penstock_llm_finished_total", count, reason)
        value("vllm:request_success_total", count, reason)
    for caller, (requests, prompt, generated) in sums.callers.items():
        value("penstock_llm_caller_requests_total", requests, caller)
        value("penstock_llm_caller_tokens_total", prompt, caller, "prompt")
        value("penstock_llm_caller_tokens_total", generated, caller, "generation")
