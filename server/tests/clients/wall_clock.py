"""A wall clock that jumps, for one server: a few lines of C between it and the kernel. The machine's own clock is left alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Every clock is as the kernel has it, but that of the wall is so many seconds ahead as a file says. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("WALL_CLOCK_SHIFT");
    if (failed || clock != CLOCK_REALTIME || !path) return failed;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return failed;
    char text[32] = {0};
    if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
    close(file);
    return failed;
}
"""


class WallClock:
    """The clock of servers that were started with `env`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler here")
        self._shift = folder / "shift"
        source, library = folder / "wall_clock.c", folder / "wall_clock.so"
        source.write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, timeout=60)
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_SHIFT": str(self._shift)}
        self.set(0)

    def set(self, seconds: int) -> None:
        """From now on it is so many seconds ahead of the right time; behind, where they are negative."""
        new = self._shift.with_suffix(".new")
        new.write_text(f"{seconds}\n")
        new.rename(self._shift)
