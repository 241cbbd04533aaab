"""llama.cpp's own HTTP server, with the settings that our adapter gives it.

python bench/llm/llamacpp_server.py MODEL THREADS OPTIONS PORT
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import xllamacpp

    from penstock.core.servable import LoadContext
    from penstock.language.files import look
    from penstock.runtime.adapters.language import engine_context
    from penstock.runtime.engines.llamacpp.settings import decide, parameters

    found = look(Path(sys.argv[1]))
    context = LoadContext(name="llamacpp", version=1, threads=int(sys.argv[2]), options=json.loads(sys.argv[3]))
    made: Any = parameters(xllamacpp, found, decide(found, engine_context(context)))
    made.hostnames, made.port = ["127.0.0.1"], int(sys.argv[4])
    server = xllamacpp.Server(made)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
