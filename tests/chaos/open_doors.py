"""Every socket and every shared memory file of a server's processes, as the kernel lists them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LISTENS = "0A"  # TCP_LISTEN of the kernel's tcp_states.h, as /proc/net/tcp writes it
ACCEPTS = 0x10000  # __SO_ACCEPTCON of the kernel's net.h, in the flags of /proc/net/unix


@dataclass(frozen=True)
class Door:
    """A way into a process: `kind` is what /proc/net calls it, `where` an address and port, or a name."""

    kind: str
    where: str


def tree(pid: int) -> set[int]:
    """A process and all below it."""
    found, new = {pid}, [pid]
    while new:
        current = new.pop()
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                if child not in found:
                    found.add(child)
                    new.append(child)
    return found


def doors(pids: set[int]) -> set[Door]:
    """Everything through which others can reach these processes: listening and unconnected sockets, named ones."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"):
        for fields in _rows(kind):
            listens = fields[3] == LISTENS if kind.startswith("tcp") else True
            if fields[9] in inodes and listens:
                found.add(Door(kind.removesuffix("6"), _address(fields[1])))
    for fields in _rows("unix"):
        name = fields[7] if len(fields) > 7 else ""
        if fields[6] in inodes and (name or int(fields[3], 16) & ACCEPTS):
            found.add(Door("unix", name))
    for fields in _rows("packet"):
        if fields[8] in inodes:
            found.add(Door("packet", fields[4]))
    return found


def named_memory(pids: set[int]) -> set[str]:
    """Files of shared memory that have a name, open or mapped."""
    found = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            path = line.partition("/")[1] + line.partition("/")[2]
            if path.startswith(("/dev/shm/", "/SYSV")):
                found.add(path)
        for _, target in _descriptors(pid):
            if target.startswith("/dev/shm/"):
                found.add(target)
    return {path for path in found if not path.endswith("(deleted)")}


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        try:
            yield entry.name, os.readlink(entry)
        except FileNotFoundError:
            continue


def _sockets(pid: int) -> Iterator[str]:
    for _, target in _descriptors(pid):
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            yield match[1]


def _rows(kind: str) -> Iterator[list[str]]:
    table = Path("/proc/net") / kind
    if table.exists():
        for line in table.read_text().splitlines()[1:]:
            yield line.split()


def _address(text: str) -> str:
    """`0100007F:1F90` as 127.0.0.1:8080: words of four bytes in the machine's order."""
    host, port = text.split(":")
    words = [int(host[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)  # an IPv6 socket for one IPv4 address, as gRPC makes them
    return f"{mapped or address}:{int(port, 16)}"
