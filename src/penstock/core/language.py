"""What passes between language models, the engines that run them, and the protocols that speak of them.

Two levels. Above: an `Ask` (messages or a prompt) is answered by `Event`s (text, reasoning, tool calls, ends, usage);
protocols speak only of these, through `LanguageModel`, which `core.door.Door.language` gives. Below: a `Generation`
(token ids in) is answered by `Delta`s (token ids out); engines speak only of these. What lies between is ours, once:
chat templates, tokenising, stop strings, parsing of tool calls and reasoning, grammars.

Log-probabilities are natural logarithms. Token ids are those of the model's own tokenizer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penstock.core.messages import NO_DEADLINE
from penstock.core.trace import TraceContext

KIND = "language"
"""Metadata of a signature that a language model has, and no other: its EngineInfo, as JSON."""

# --- what engines speak of ---


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. None is the model's own default (its generation_config), then the engine's.

    Penalties as the OpenAI API defines them (-2 to 2), `repetition_penalty` as in CTRL (above 0; 1 is none).
    """

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 is all
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    no_repeat_ngram: int = 0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id, -100 to 100
    min_tokens: int = 0
    ignore_eos: bool = False


GrammarKind = Literal["regex", "ebnf", "json"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output must match. `regex` is a pattern of the whole output (no anchors, no look-around); `ebnf` is
    in the GBNF dialect that llama.cpp and xgrammar share, its start rule called `root`; `json` is a JSON Schema."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to be generated: what an engine is asked. `n` choices are `n` of these."""

    id: str
    token_ids: tuple[int, ...]
    max_tokens: int  # at least 1; never beyond the context
    sampling: Sampling = Sampling()
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end; the one met is the last of `Delta.token_ids`
    grammar: Grammar | None = None  # of a kind in `EngineInfo.grammars`
    logprobs: int | None = None  # None: none; 0: of the chosen token; k: and of the k likeliest
    prompt_logprobs: int | None = None
    adapter: str = ""  # a LoRA adapter's name
    priority: int = 0  # 0 is the default level, 1 the highest
    deadline: float = NO_DEADLINE  # monotonic seconds
    ask: bytes = b""  # of engines that speak of whole conversations (`EngineInfo.chats`): the Ask, as JSON
    # Tokens that nobody looks at before the end: on their way, so many seconds of them may become one Delta, after the
    # first. Not the engine's business.
    gather_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and how likely it was: `top` are the likeliest, likeliest first, the chosen one among them or not."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is at one moment. Tokens of KV cache; `kv_capacity` 0 is unknown."""

    running: int = 0
    waiting: int = 0
    kv_used: int = 0
    kv_capacity: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache since the start
    prefix_hits: int = 0  # of these, found


@dataclass(frozen=True, slots=True)
class Delta:
    """What an engine has generated since its last Delta: one token or several. The last one has `finish_reason`.

    `cached_tokens` (of the prompt, found in the prefix cache) is in the first Delta, -1 where an engine cannot tell.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token when asked for
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # in the first Delta, when asked for; None for token 0
    finish_reason: Literal["", "stop", "length"] = ""
    cached_tokens: int = -1
    load: EngineLoad | None = None  # now and then
    event: bytes = b""  # of engines that speak of whole conversations: an Event, as JSON


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine is and can do. A request that needs more is refused by name, never silently changed."""

    engine: str  # the plug's name
    engine_version: str
    context_tokens: int  # prompt and output together
    vocabulary: int
    generates: bool = True
    embeds: bool = False
    ranks: bool = False  # scores pairs of texts (a cross-encoder)
    classifies: bool = False
    chats: bool = False  # takes whole conversations instead of tokens (an upstream); templates are its own business
    grammars: frozenset[str] = frozenset()  # kinds it takes
    top_logprobs: int = 0  # the most; 0 is of the chosen token only, -1 is none at all
    prompt_logprobs: bool = False
    logit_bias: bool = False
    min_p: bool = False
    min_tokens: bool = False
    ignore_eos: bool = False
    penalties: bool = True
    repetition_penalty: bool = True
    no_repeat_ngram: bool = False
    seeded: bool = True  # the same seed, prompt and load of one give the same tokens
    adapters: Literal["none", "process", "request"] = "none"  # where LoRA adapters are chosen
    adapter_names: tuple[str, ...] = ()
    priority: bool = False
    prefix_cache: bool = False
    disaggregated: bool = False  # prefill and decode may run in different replicas
    max_running: int = 1  # sequences generated at once
    kv_bytes_per_token: int = 0
    kv_capacity: int = 0  # tokens; 0 is unknown
    weights_bytes: int = 0
    embedding_size: int = 0
    labels: tuple[str, ...] = ()  # of a classifier
    precision: str = ""  # as the engine computes: "int8", "q4_1", "bf16", …
    note: str = ""  # for people: what was converted from what


# --- what protocols speak of ---


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model has made. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. `content` is text; None when there are only tool calls."""

    role: str  # system, developer, user, assistant, tool
    content: str | None = None
    name: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON Schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    strict: bool = False


FormatKind = Literal["text", "json_object", "json_schema", "regex", "choice", "ebnf", "lark"]


@dataclass(frozen=True, slots=True)
class Format:
    """What the visible output must look like. `schema` for json_schema, `text` for regex, ebnf and lark, `choices`."""

    kind: FormatKind = "text"
    schema: Mapping[str, object] | bool = field(default_factory=dict)
    text: str = ""
    choices: tuple[str, ...] = ()
    name: str = ""


@dataclass(slots=True)
class Ask:
    """One request to a language model, of any protocol. Exactly one of `messages` and `prompt` is given."""

    messages: Sequence[Message] | None = None
    prompt: str | Sequence[int] | None = None
    n: int = 1
    max_tokens: int | None = None  # None: as many as fit
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # the stop string is part of the text
    format: Format = Format()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # auto, none, required, or `=NAME`
    parallel_tool_calls: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False  # the prompt is repeated before the output (completions only)
    reasoning: str = ""  # "": as the template does; "none", "low", "medium", "high"
    adapter: str = ""
    template: str = ""  # a chat template instead of the model's own
    template_arguments: Mapping[str, object] = field(default_factory=dict)
    add_generation_prompt: bool = True  # the template begins the assistant's answer
    continue_last: bool = False  # the last message is an assistant's beginning, to be continued
    skip_special_tokens: bool = True
    id: str = ""
    priority: int = 0
    deadline: float = NO_DEADLINE
    caller: str = ""  # whose key it was; "" is nobody in particular
    trace: TraceContext | None = None
    whole: bool = False  # nobody sees anything of the answer before its end, so its events may come late and joined
    # Headers that go with the answer, added while it is made: all are there when its first event is.
    notes: list[tuple[str, str]] = field(default_factory=list)
    # Takes events as they come, while the reader of `LanguageModel.ask` waits for the next one and has passed on all
    # before it. False, without having looked at them: they come from the iterator, as the first and the last ones do.
    take: Callable[[Sequence[Event]], bool] | None = None
    # How each parameter is called in the caller's own protocol, for errors: {"sampling.logit_bias": "logit_bias"}.
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextToken:
    """One token as text with its probability. `text` may be half a character: `raw` has the bytes."""

    token_id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()  # id, text, bytes, log-probability


@dataclass(frozen=True, slots=True)
class Text:
    """More of the visible text of a choice. `tokens` when log-probabilities were asked for."""

    choice: int
    text: str
    tokens: tuple[TextToken, ...] = ()
    prompt: bool = False  # it is the prompt: echoed, or with `tokens` only when `prompt_logprobs` were asked for
    count: int = 0  # tokens that were generated for it


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what a choice thinks before it answers."""

    choice: int
    text: str
    count: int = 0  # tokens that were generated for it


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """More of a tool call: `id` and `name` in its first part, then pieces of `arguments`, which join to JSON."""

    choice: int
    index: int  # among the choice's calls
    id: str = ""
    name: str = ""
    arguments: str = ""
    count: int = 0  # tokens that were generated for it


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice has ended. `stop` is the stop string or id that was met, None when it was the model's own end."""

    choice: int
    reason: FinishReason
    stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request; the last event, exactly once. The prompt counts once however many choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt; -1 where the engine cannot tell
    reasoning_tokens: int = 0
    queue_s: float = 0.0
    first_token_s: float = 0.0  # from when the request was received


@dataclass(frozen=True, slots=True)
class Began:
    """The first event: the request was admitted, and the prompt has so many tokens."""

    prompt_tokens: int
    model: str
    version: str


Event = Began | Text | Reasoning | ToolCallPart | Finished | Usage


@dataclass(frozen=True, slots=True)
class Card:
    """A language model as others see it."""

    name: str
    version: str
    info: EngineInfo
    created: int  # seconds since the epoch: when its files were made
    chat: bool  # it has a chat template
    tools: bool  # its template takes tools, or ours is used
    reasons: bool  # it thinks before it answers, and says where


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings, `values` (texts, size) as nested lists of floats, of length 1 each; and the tokens they took."""

    values: Sequence[Sequence[float]]
    tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers for texts, in the order they were given: `values` (texts, labels); and the tokens they took."""

    values: Sequence[Sequence[float]]
    tokens: int


class LanguageModel(Protocol):
    """A ready language model, as protocols use it. `Door.language` gives one; it may be kept for one request."""

    card: Card

    def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """Events of all choices, mixed: `Began` first, `Usage` last. Closing it frees the engine within one token.

        Raises (at the first step where possible): InvalidInput, whose message names the parameter as `ask.names`
        says; TooLarge for a prompt that does not fit; Overloaded, QuotaExceeded, DeadlineExceeded, WorkerLost.
        """
        ...

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text, with the model's own special tokens around it when `special`."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        ...

    async def render(self, ask: Ask) -> str:
        """The prompt that `ask.messages` become. Raises: InvalidInput, Unsupported without a template."""
        ...

    async def prompt_ids(self, ask: Ask) -> list[int]:
        """The ids of that prompt, in which control tokens that users spelled out are text. Raises: as `render`."""
        ...

    async def embed(
        self, texts: Sequence[str | Sequence[int]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Vectors:
        """Raises: Unsupported when the model does not embed; TooLarge for a text beyond its context."""
        ...

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Scores:
        """How well each second text answers the first; of a model that only embeds, the cosine. Raises: Unsupported."""
        ...

    async def classify(self, texts: Sequence[str], *, caller: str = "", deadline: float = NO_DEADLINE) -> Scores:
        """Probabilities of `card.info.labels`. Raises: Unsupported."""
        ...
