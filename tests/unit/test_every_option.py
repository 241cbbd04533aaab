"""Every option has a test that sees its effect: no setting is silently without one.

The table names, for each option, a test that would fail if the option did nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config import options_of
from penstock.fleet.up.options import UpOptions
from penstock.runtime.options import ModelOptions, ServerOptions

TESTS = Path(__file__).parents[1]

SPANS = "integration/test_opentelemetry.py"
CLI, API = "integration/test_cli.py", "integration/test_api.py"
PLATFORM, ENDPOINTS = "integration/test_options_of_the_platform.py", "integration/test_platform.py"
SERVER, MODELS = "integration/test_options_of_the_server.py", "integration/test_options_of_models.py"

MANY = "integration/test_many_models.py"
LIMITS = f"{SERVER}::test_what_is_larger_or_deeper_than_its_limit_is_refused"
TIMES = f"{SERVER}::test_heads_bodies_and_idle_connections_have_times_of_their_own"
TLS = f"{SERVER}::test_tls_cert_and_tls_key_make_both_ports_speak_tls_and_tls_client_ca_asks_clients_for_theirs"
TLS_PUBLIC = "test_tls_cert_and_tls_key_make_the_public_ports_speak_tls_and_graphs_reach_others_all_the_same"
CONTROL = f"{SERVER}::test_load_models_says_what_an_explicit_server_starts_with"
LOGS = f"{SERVER}::test_log_format_and_log_level_decide_what_lines_look_like_and_which_there_are"
ANYWHERE = f"{SERVER}::test_host_and_allow_anonymous_open_another_address_without_a_key"
JOINED = f"{MODELS}::test_batch_and_max_batch_size_decide_how_many_requests_are_joined"
CONTEXT = f"{MODELS}::test_threads_borrow_threads_and_devices_reach_the_model"
DECLARED = f"{MODELS}::test_inputs_and_outputs_declare_what_the_code_does_not"
TAKEN = f"{MODELS}::test_name_and_adapter_and_options_are_taken"
VERSIONS = f"{MODELS}::test_versions_and_labels_decide_what_answers"
WHERE = f"{MODELS}::test_executor_and_warm_up_decide_where_a_library_model_runs"

EFFECTS: dict[type, dict[str, str]] = {
    ServerOptions: {
        "host": ANYWHERE,
        "http_port": f"{SERVER}::test_the_named_ports_are_listened_on",
        "grpc_port": f"{SERVER}::test_the_named_ports_are_listened_on",
        "grpc": f"{API}::test_two_servers_run_beside_each_other",
        "api_key": f"{CLI}::test_an_api_key_is_asked_for_and_taken_from_the_environment",
        "api_key_file": f"{SERVER}::test_the_keys_of_api_key_file_are_taken_and_no_others",
        "allow_anonymous": ANYWHERE,
        "tls_cert": TLS,
        "tls_key": TLS,
        "tls_client_ca": TLS,
        "max_body_bytes": LIMITS,
        "max_header_bytes": LIMITS,
        "max_json_depth": LIMITS,
        "max_tensor_bytes": LIMITS,
        "max_decompressed_bytes": LIMITS,
        "max_connections": f"{SERVER}::test_more_connections_than_max_connections_are_refused_with_503",
        "header_timeout_s": TIMES,
        "body_timeout_s": TIMES,
        "keep_alive_s": TIMES,
        "fronts": f"{SERVER}::test_fronts_are_as_many_listeners_on_one_port",
        "grpc_connection_age_s": f"{SERVER}::test_grpc_connections_are_made_anew_at_their_age_and_no_call_is_lost",
        "lame_duck_s": "integration/test_serving.py::test_lame_duck_serves_while_it_is_not_ready",
        "grace_s": f"{SERVER}::test_grace_s_bounds_the_wait_for_what_is_in_flight",
        "model_control": CONTROL,
        "poll_s": f"{SERVER}::test_a_new_version_is_seen_within_poll_s",
        "load_models": CONTROL,
        "models_memory_bytes": f"{MANY}::test_models_that_rest_answer_for_themselves_and_the_index_tells_them_apart",
        "idle_unload_s": f"{MANY}::test_worker_processes_rest_too",
        "accept_code": (
            "integration/test_repository_calls.py::test_code_in_a_load_call_is_refused_unless_accept_code_allows_it"
        ),
        "timing_headers": f"{SERVER}::test_timing_headers_puts_the_split_into_every_answer",
        "access_log": f"{SPANS}::test_the_access_log_has_a_line_for_every_request",
        "trace_endpoint": f"{SPANS}::test_a_trace_is_connected_from_the_caller_to_user_code",
        "trace_sampling": f"{SPANS}::test_callers_decide_and_others_are_sampled",
        "state": "chaos/test_state_survives.py::test_a_batch_goes_on_after_a_kill_and_each_line_has_one_answer",
        "log_format": f"{SERVER}::test_log_format_text_is_no_json",
        "log_level": LOGS,
    },
    ModelOptions: {
        "name": TAKEN,
        "path": f"{CLI}::test_models_lists_what_is_loaded_with_figures",
        "adapter": TAKEN,
        "executor": WHERE,
        "max_workers": (
            "integration/test_elastic_workers.py::"
            "test_workers_come_with_the_load_and_go_when_it_is_over_and_no_request_is_lost"
        ),
        "workers": f"{MODELS}::test_workers_are_as_many_processes",
        "threads": CONTEXT,
        "borrow_threads": CONTEXT,
        "devices": CONTEXT,
        "batch": JOINED,
        "max_batch_size": JOINED,
        "batch_delay_s": f"{MODELS}::test_batch_delay_s_makes_a_free_worker_wait_for_more",
        "batch_sizes": f"{MODELS}::test_batch_sizes_pad_a_batch_and_the_padding_is_not_answered",
        "shed": "chaos/test_overload.py::test_shed_false_fills_the_whole_queue_instead",
        "max_queue": "integration/test_serving.py::test_full_queue_refuses_at_once_and_says_when_to_come_back",
        "timeout_s": f"{MODELS}::test_timeout_s_is_the_deadline_of_requests_that_bring_none",
        "hang_s": "integration/test_serving.py::test_stuck_worker_is_found_and_replaced",
        "max_memory_bytes": "chaos/test_memory_limit.py::test_worker_that_wants_more_memory_than_its_limit_ends_alone",
        "load_timeout_s": f"{MODELS}::test_a_load_that_takes_longer_than_load_timeout_s_ends",
        "versions": VERSIONS,
        "labels": VERSIONS,
        "keep_previous_s": "chaos/test_version_switches.py::test_a_version_is_kept_for_keep_previous_s_and_not_longer",
        "sha256": "chaos/test_bad_artifacts.py::test_content_that_is_not_the_expected_one_is_refused_with_both_hashes",
        "trust": f"{MODELS}::test_trust_lets_a_pickled_model_in",
        "warm_up": WHERE,
        "inputs": DECLARED,
        "outputs": DECLARED,
        "options": TAKEN,
    },
    UpOptions: {
        **dict.fromkeys(
            ("state", "http_port", "grpc_port", "routers", "log_level"),
            f"{PLATFORM}::test_ports_routers_state_and_logs_are_as_asked",
        ),
        **dict.fromkeys(
            ("host", "allow_anonymous"),
            f"{PLATFORM}::test_on_another_address_callers_need_a_key_unless_anonymous_ones_are_allowed",
        ),
        **dict.fromkeys(
            ("admin_host", "admin_port", "admin_key_file"),
            f"{PLATFORM}::test_the_admin_port_is_there_for_those_with_its_key_only",
        ),
        **dict.fromkeys(("tls_cert", "tls_key"), f"{PLATFORM}::{TLS_PUBLIC}"),
        "grpc": f"{PLATFORM}::test_without_grpc_nothing_listens_for_it",
        "grace_s": f"{PLATFORM}::test_grace_s_bounds_the_wait_for_what_is_in_flight",
        "driver": f"{PLATFORM}::test_an_unknown_driver_is_told",
        "log_format": f"{PLATFORM}::test_ports_routers_state_and_logs_are_as_asked",
        "database": f"{PLATFORM}::test_the_state_may_be_in_postgresql",
    },
}


@pytest.mark.parametrize("kind", EFFECTS)
def test_every_option_is_in_the_table_and_nothing_else(kind: type) -> None:
    assert set(EFFECTS[kind]) == set(options_of(kind))


@pytest.mark.parametrize("kind", EFFECTS)
def test_every_test_in_the_table_exists(kind: type) -> None:
    for option, place in EFFECTS[kind].items():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(), (option, place)
