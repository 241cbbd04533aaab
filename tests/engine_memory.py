"""A process that loads a model with one engine, fills its cache, and prints what is resident at each step.

Run as `python engine_memory.py MODEL ENGINE CONTEXT SEQUENCES OPTIONS-AS-JSON CACHE-FOLDER`. Linux only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path


def resident_bytes() -> int:
    """RSS of this process. Source: proc(5), smaps_rollup."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Rss in smaps_rollup")


async def measure(
    model: Path, engine: str, context: int, sequences: int, options: dict[str, object], cache: Path
) -> None:
    from importlib import import_module

    from penstock.core.language import Generation, Sampling
    from penstock.language.files import look
    from penstock.runtime.engines import EngineContext
    from penstock.runtime.language.fit import fitted
    from penstock.runtime.workers import child  # noqa: F401  # a worker has it all imported

    dtype = str(options.pop("dtype", ""))
    size = options.pop("kv_cache_bytes", None)
    files = look(model)
    asked = EngineContext(
        "m", threads=1, context_tokens=context, max_running=sequences, kv_cache_bytes=size, dtype=dtype, cache=cache,
        options=options,
    )  # fmt: skip
    loaded = import_module(f"penstock.runtime.engines.{engine}").plug.load(files, fitted(files, asked, engine))
    found = {"at_load": resident_bytes(), "kv_bytes_per_token": loaded.info.kv_bytes_per_token}

    async def fill(index: int, count: int) -> None:
        tokens = tuple([100 + index] + [5 + (at * 7 + index) % 4000 for at in range(count - 1)])
        async for _ in loaded.generate(Generation(f"g{index}", tokens, 4, Sampling(temperature=0))):
            pass

    if loaded.info.generates:
        await asyncio.gather(*(fill(index, context - 40) for index in range(sequences)))
    else:
        await loaded.embed([[5 + at % 4000 for at in range(context - 2)]] * sequences)
    found["full"] = resident_bytes()
    print(json.dumps(found), flush=True)
    await loaded.close()


if __name__ == "__main__":
    asyncio.run(
        measure(
            Path(sys.argv[1]),
            sys.argv[2],
            int(sys.argv[3]),
            int(sys.argv[4]),
            json.loads(sys.argv[5]),
            Path(sys.argv[6]),
        )
    )
    sys.stdout.flush()
    os._exit(0)
