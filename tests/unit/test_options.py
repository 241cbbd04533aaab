"""Options that cannot take effect together are refused."""

from __future__ import annotations

import pytest

from penstock.config import Layer, resolve
from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput
from penstock.runtime.options import ModelOptions, ServerOptions, check_model, check_server


def server(**values: object) -> None:
    check_server(resolve(ServerOptions, [Layer("flag {flag}", values)]))


def model(**values: object) -> None:
    check_model(resolve(ModelOptions, [Layer("flag {flag}", values)]))


def test_defaults_fit_together() -> None:
    server()
    model()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"host": "0.0.0.0"}, "no API key"),
        ({"host": "example.org"}, "no API key"),
        ({"host": "::"}, "no API key"),
        ({"host": "0.0.0.0", "allow_anonymous": True, "api_key": "k"}, "allow_anonymous has no effect"),
        ({"allow_anonymous": True}, "allow_anonymous has no effect on the loopback address"),
        ({"api_key": ""}, "api_key is empty"),
        ({"tls_key": "key.pem"}, "tls_key has no effect without tls_cert"),
        ({"tls_cert": "cert.pem"}, "tls_cert needs tls_key"),
        ({"trace_sampling": 0.5}, "trace_sampling (flag --trace-sampling) has no effect without trace_endpoint"),
        ({"trace_endpoint": "collector:4318"}, "write it like http://127.0.0.1:4318/v1/traces"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca has no effect"),
        ({"grpc": False, "grpc_port": 9}, "grpc_port (flag --grpc-port) has no effect"),
        ({"http_port": 8081}, "both 8081"),
        ({"model_control": "none", "poll_s": 3}, "poll_s (flag --poll-s) has no effect"),
        ({"load_models": "a"}, "set model_control = 'explicit'"),
    ],
)
def test_server_options_without_effect_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        server(**values)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        {"host": "0.0.0.0", "api_key": "k"},
        {"host": "0.0.0.0", "api_key_file": "keys"},
        {"host": "0.0.0.0", "allow_anonymous": True},
        {"http_port": 0, "grpc_port": 0},
        {"http_port": 8081, "grpc": False},
        {"model_control": "explicit", "load_models": "*"},
        {"tls_cert": "c", "tls_key": "k", "tls_client_ca": "ca"},
    ],
)
def test_server_options_that_work_together_pass(values: dict[str, object]) -> None:
    server(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batch": False, "batch_sizes": "1,2"}, "batch_sizes (flag --batch-sizes) has no effect"),
        ({"batch": False, "max_batch_size": 64}, "max_batch_size (flag --max-batch-size) has no effect"),
        ({"batch": False, "batch_delay_s": 1}, "batch_delay_s (flag --batch-delay-s) has no effect"),
        ({"batch_sizes": "4,2"}, "ascending"),
        ({"batch_sizes": "2,2"}, "ascending"),
        ({"batch_sizes": "1,128"}, "max_batch_size is 64"),
        ({"batch_sizes": "1,8", "max_batch_size": 16}, "max_batch_size is 16"),
        ({"batch_delay_s": 2, "timeout_s": 1}, "no less than timeout_s"),
        ({"executor": "inline", "workers": 2}, "workers (flag --workers) has no effect"),
        ({"executor": "inline", "max_workers": 2}, "max_workers (flag --max-workers) has no effect"),
        ({"workers": 3, "max_workers": 3}, "is 3 and workers is 3"),
        ({"executor": "inline", "hang_s": 2}, "hang_s (flag --hang-s) has no effect"),
        ({"executor": "inline", "devices": "cuda:0"}, "need workers"),
        ({"threads": 2, "borrow_threads": True}, "borrow_threads (flag --borrow-threads) has no effect beside threads"),
        ({"devices": ()}, "devices is empty"),
        ({"devices": "gpu"}, "device 'gpu' is unknown"),
        ({"devices": "cuda:0*1.5"}, "unknown"),
        ({"devices": "cuda:0*."}, "unknown"),
        ({"devices": "cuda:0,cuda:1", "workers": 1}, "would stay unused"),
        ({"versions": "newest"}, "latest:N"),
        ({"versions": "latest:0"}, "latest:N"),
        ({"labels": {"3": 4}}, "a word that is no number"),
        ({"labels": {"stable": 0}}, "a version such as 3"),
        ({"inputs": {"x": "f5[n]"}}, "cannot read the declaration"),
        ({"name": "a/b"}, "may not hold"),
    ],
)
def test_model_options_without_effect_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        model(**values)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        {"batch_sizes": "1,4,64"},
        {"batch_sizes": "1,4,128", "max_batch_size": 128},
        {"batch_sizes": "1,4"},
        {"devices": "cuda:0*0.5,cuda:1", "workers": 2},
        {"versions": "all"},
        {"versions": "3, 4"},
        {"versions": "latest:2", "labels": {"stable": 3}},
        {"executor": "inline", "threads": 1},
    ],
)
def test_model_options_that_work_together_pass(values: dict[str, object]) -> None:
    model(**values)


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        server(tls_key="k", load_models="a")
    assert "tls_key" in caught.value.message and "load_models" in caught.value.message


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("localhost.example.org", False),
    ],
)
def test_only_loopback_addresses_are_this_machine_s_own(host: str, local: bool) -> None:
    assert is_loopback(host) is local
