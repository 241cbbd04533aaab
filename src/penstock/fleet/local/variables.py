"""The environment that a replica is started with.

A replica inherits little of the controller's: that may hold secrets of other deployments, and settings of its own.
What it gets is a list of names that describe the machine (`_INHERITED`), then what the run says.

Who may deploy may run code as this user, so `env` is not a border to defend; only what would make a replica impossible
to know, to stop or to talk to is refused. Preloading an allocator (`LD_PRELOAD`), own modules (`PYTHONPATH`) and
Python's switches are the user's right.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from penstock.core.errors import InvalidInput
from penstock.fleet.spec import Run

# Tells the processes of a replica from all others: `FLEET:ID:RANDOM`. It does not begin like an option of the runtime,
# so that workers and what user code starts hand it on.
MARKER = "_PENSTOCK_REPLICA"

_INHERITED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP",
        "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy",
        "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
        "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "PYTHONPATH",
    }
)  # fmt: skip
_INHERITED_PREFIX = "LC_"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_REFUSED = {
    "PYTHONHOME": "it takes the interpreter's own library away",
    "PYTHONINSPECT": "a replica would never end",
    "PYTHONEXECUTABLE": "workers could not be started",
    "PYTHONPLATLIBDIR": "it takes the interpreter's own library away",
    MARKER: "it is the platform's",
}
# Source: execve(2), MAX_ARG_STRLEN: one string of the environment holds 32 pages, with its name and its end.
_LONGEST_BYTES = 32 * 4096 - 1
_SECRET_FILE_BYTES = 64 << 10


def variables(
    run: Run, controllers: Mapping[str, str], marker: str, own_python: bool, platforms: Mapping[str, str]
) -> dict[str, str]:
    """The environment of one replica, with its secrets: to be handed to the process and kept nowhere.

    `controllers` is the controller's environment, `platforms` what the platform adds. With `own_python` the replica has
    an environment of its own, and the controller's PYTHONPATH stays outside.

    Raises:
        InvalidInput: a variable that is refused, or a secret that cannot be read; the message never holds a value.
    """
    made = {
        name: value for name, value in controllers.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIX)
    }
    if own_python:
        made.pop("PYTHONPATH", None)
    for name in (*run.env, *run.secrets):
        _check_name(name, run)
    made.update(run.env)
    made.update({name: _secret(name, source, controllers) for name, source in run.secrets.items()})
    for name, value in made.items():
        if "\0" in value or len(name) + len(os.fsencode(value)) + 1 > _LONGEST_BYTES:
            raise InvalidInput(f"variable {name}: a value has no NUL and at most {_LONGEST_BYTES - 256} bytes")
    return {**made, **platforms, MARKER: marker}


def _check_name(name: str, run: Run) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"variable {name[:80]!r}: a name is letters, digits and _, and does not begin with a digit")
    if name in _REFUSED:
        raise InvalidInput(f"variable {name} cannot be set: {_REFUSED[name]}")
    if name.startswith("PENSTOCK_"):
        raise InvalidInput(f"variable {name} cannot be set: write options of the server under `server` and `options`")
    if name == "CUDA_VISIBLE_DEVICES" and run.gpu:
        raise InvalidInput("variable CUDA_VISIBLE_DEVICES cannot be set beside gpu: the platform picks the devices")
    if name in run.env and name in run.secrets:
        raise InvalidInput(f"variable {name} is in env and in secrets; write one")


def _secret(name: str, source: str, controllers: Mapping[str, str]) -> str:
    kind, _, at = source.partition(":")
    if kind == "env":
        if at.startswith("PENSTOCK_"):  # keys of the platform itself
            raise InvalidInput(f"secret {name}: {at} is the platform's own")
        if at not in controllers:
            raise InvalidInput(
                f"secret {name}: there is no variable {at} in the controller's environment; start `penstock up` with it"
            )
        return controllers[at]
    if kind == "file":
        return _from_file(name, Path(at))
    raise InvalidInput(f"secret {name}: write env:NAME or file:/path")


def _from_file(name: str, path: Path) -> str:
    if not path.is_absolute():
        raise InvalidInput(f"secret {name}: write the file's whole path, such as file:/etc/key")
    try:
        # A pipe without a writer would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"secret {name}: {path} is no file")
            data = file.read(_SECRET_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"secret {name}: {path} cannot be read: {error.strerror}") from None
    if len(data) > _SECRET_FILE_BYTES:
        raise InvalidInput(f"secret {name}: {path} has more than {_SECRET_FILE_BYTES >> 10} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"secret {name}: {path} is no UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")  # as editors end a file
