"""Compiles every .proto under src to a .binpb beside it: a serialized FileDescriptorSet, which `core.protobuf` loads.

Run `python tools/protos.py` after changing a .proto; needs grpcio-tools (development only). `--check` writes nothing
and fails when a .binpb is not what its .proto gives.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).parent.parent / "src"


def compiled(proto: Path) -> bytes:
    """The FileDescriptorSet of one .proto, without comments, dependencies included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.binpb"
        status = protoc.main(
            ["protoc", f"--proto_path={proto.parent}", "--include_imports", f"--descriptor_set_out={out}", str(proto)]
        )
        if status != 0:
            raise SystemExit(f"protoc could not compile {proto}")
        return out.read_bytes()


def main(arguments: list[str]) -> int:
    stale = []
    for proto in sorted(SOURCES.rglob("*.proto")):
        target = proto.with_suffix(".binpb")
        data = compiled(proto)
        if target.exists() and target.read_bytes() == data:
            continue
        stale.append(target)
        if "--check" not in arguments:
            target.write_bytes(data)
    for target in stale:
        print(f"{'stale' if '--check' in arguments else 'wrote'} {target.relative_to(SOURCES)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
