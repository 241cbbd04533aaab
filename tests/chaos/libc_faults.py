"""Faults beneath a server's processes: a wall clock that jumps, and files that fail or hang, by a library put before
the C library. No privileges, no other process is touched."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t nothing[3];
static volatile int64_t *wish = nothing;  /* seconds on the wall clock, errno of files, whether they hang */
static const char *prefix;

__attribute__((constructor)) static void begin(void) {
    const char *control = getenv("FAULTS_CONTROL");
    prefix = getenv("FAULTS_PREFIX");
    if (!control) return;
    int fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *page = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) wish = page;
}

static int fails(const char *path) {
    if (!prefix || !path || strncmp(path, prefix, strlen(prefix))) return 0;
    while (wish[2]) { struct timespec t = {0, 20000000}; nanosleep(&t, 0); }
    if (!wish[1]) return 0;
    errno = (int)wish[1];
    return 1;
}

#define NEXT(kind, name) static kind next; if (!next) next = (kind)dlsym(RTLD_NEXT, name)

int clock_gettime(clockid_t id, struct timespec *at) {
    typedef int (*real)(clockid_t, struct timespec *);
    NEXT(real, "clock_gettime");
    int result = next(id, at);
    if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += wish[0];
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
#define ON_PATH(name, other) \
    int name(const char *path, other *buffer) { \
        typedef int (*real)(const char *, other *); NEXT(real, #name); \
        return fails(path) ? -1 : next(path, buffer); }
ON_PATH(stat, struct stat)
ON_PATH(lstat, struct stat)
ON_PATH(stat64, struct stat64)
ON_PATH(lstat64, struct stat64)
#define ON_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        typedef int (*real)(const char *, int, ...); NEXT(real, #name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return fails(path) ? -1 : next(path, flags, mode); }
ON_OPEN(open)
ON_OPEN(open64)
DIR *opendir(const char *path) {
    typedef DIR *(*real)(const char *);
    NEXT(real, "opendir");
    return fails(path) ? 0 : next(path);
}
"""


class Faults:
    """One set of faults, in force for every process started with the environment while it is set."""

    def __init__(self, folder: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Servers started from now on have the faults, of files below `prefix`. Skips where there is no compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("needs a C compiler, to put a library before the C library")
        (folder / "faults.c").write_text(SOURCE)
        library = folder / "faults.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, folder / "faults.c", "-ldl"], check=True
        )
        control = folder / "faults.control"
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("FAULTS_CONTROL", str(control))
        monkeypatch.setenv("FAULTS_PREFIX", str(prefix))

    def set(self, *, clock_s: int = 0, error: int = 0, hang: bool = False) -> None:
        """From now on: the wall clock is off by `clock_s`, files fail with `error` (an errno), or hang. Once set to
        their defaults, what hangs goes on."""
        struct.pack_into("<qqq", self._page, 0, clock_s, error, int(hang))
