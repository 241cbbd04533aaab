"""Every option has a test that sees its effect: no setting is silently without one.

The table names, for each option, a test that would fail if the option did nothing. `WITHOUT` is what still lacks one;
it may only shrink.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config import options_of
from penstock.runtime.options import ModelOptions, ServerOptions

TESTS = Path(__file__).parents[1]

CLI, API = "integration/test_cli.py", "integration/test_api.py"

EFFECTS: dict[type, dict[str, str]] = {
    ServerOptions: {
        "http_port": f"{CLI}::test_serve_tells_where_and_stops_on_sigint",
        "grpc": f"{API}::test_two_servers_run_beside_each_other",
        "api_key": f"{CLI}::test_an_api_key_is_asked_for_and_taken_from_the_environment",
    },
    ModelOptions: {
        "path": f"{CLI}::test_models_lists_what_is_loaded_with_figures",
    },
}

WITHOUT: dict[type, set[str]] = {
    ServerOptions: {
        "host", "grpc_port", "fronts", "api_key_file", "allow_anonymous", "tls_cert", "tls_key", "tls_client_ca",
        "max_body_bytes", "max_header_bytes", "max_json_depth", "max_tensor_bytes", "max_decompressed_bytes",
        "max_connections", "header_timeout_s", "body_timeout_s", "keep_alive_s", "lame_duck_s", "grace_s",
        "model_control", "poll_s", "load_models", "timing_headers", "log_format", "log_level",
    },
    ModelOptions: {
        "name", "adapter", "executor", "workers", "threads", "borrow_threads", "devices", "batch", "max_batch_size",
        "batch_delay_s", "batch_sizes", "max_queue", "timeout_s", "load_timeout_s", "hang_s", "versions", "labels",
        "trust", "warm_up", "inputs", "outputs", "options",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", [ServerOptions, ModelOptions])
def test_every_option_is_in_the_table_once(kind: type) -> None:
    options, proven, open_ = set(options_of(kind)), set(EFFECTS[kind]), WITHOUT[kind]
    assert not proven & open_, "an option with a test is no longer without one"
    assert proven | open_ == options


@pytest.mark.parametrize("kind", [ServerOptions, ModelOptions])
def test_every_test_in_the_table_exists(kind: type) -> None:
    for option, place in EFFECTS[kind].items():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(), (option, place)
