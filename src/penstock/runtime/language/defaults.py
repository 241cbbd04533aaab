"""What options mean for language models where they are not set: answers take minutes, loads convert weights."""

from __future__ import annotations

from dataclasses import replace

from penstock.runtime.options import ModelOptions

LANGUAGE = "language"  # the adapter

TIMEOUT_S = 600.0
LOAD_TIMEOUT_S = 3600.0  # a conversion of billions of weights takes tens of minutes, once
# A worker's pulse is its proof of progress: a thread of its own beats while native code computes, also through a long
# prefill, unless that code holds the interpreter lock all the while. Silence of a minute is no prefill.
HANG_S = 60.0


def for_language(options: ModelOptions) -> ModelOptions:
    """The options of a language model: what has the default of other models gets its own."""
    unset = ModelOptions()
    return replace(
        options,
        timeout_s=TIMEOUT_S if options.timeout_s == unset.timeout_s else options.timeout_s,
        load_timeout_s=LOAD_TIMEOUT_S if options.load_timeout_s == unset.load_timeout_s else options.load_timeout_s,
        hang_s=HANG_S if options.hang_s == unset.hang_s else options.hang_s,
    )
