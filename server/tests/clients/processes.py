"""Processes that are killed, stopped, held and throttled from outside, as a kernel or an operator does it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness import wait_until


def exists(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_until_gone(pid: int, number: int) -> None:
    """Rust's own handler for stack overflows swallows the first SIGSEGV that somebody sends; a real one comes again."""

    def gone() -> bool:
        if exists(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return not exists(pid)

    wait_until(gone, f"process {pid} is gone")


def signal_all(pids: Sequence[int], number: int) -> None:
    """Sends a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Held:
    """Threads of another process, each stopped by itself, as a debugger does it."""

    ATTACH, DETACH, WALL = 16, 17, 0x40000000

    def __init__(self, pid: int, name: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._held = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                thread = int(task.name)
                if self._libc.ptrace(self.ATTACH, thread, None, None) != 0:
                    self.release()
                    pytest.skip("no ptrace here")
                os.waitpid(thread, self.WALL)
                self._held.append(thread)
        assert self._held, f"no thread is called {name}"

    def release(self) -> None:
        """Takes note of threads that were killed meanwhile, which otherwise keep their process from ending."""
        for thread in self._held:
            os.waitpid(thread, self.WALL)


# ===== less processor =====

# Of cgroup v1; where it is not mounted, or not ours to write, the same is done by signals.
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
QUOTA_PERIOD_S = 0.1


@contextlib.contextmanager
def throttled(pids: Sequence[int], share: float) -> Iterator[str]:
    """Gives processes `share` of one processor, by a quota of the kernel's where that can be had. Yields how."""
    group = CPU_GROUPS / f"balm-test-{os.getpid()}-{threading.get_ident()}"
    try:
        home = _cpu_group(pids[0])
        group.mkdir()
    except (OSError, StopIteration):
        with _by_signals(pids, share):
            yield "signals"
        return
    try:
        (group / "cpu.cfs_period_us").write_text(str(int(QUOTA_PERIOD_S * 1e6)))
        (group / "cpu.cfs_quota_us").write_text(str(int(QUOTA_PERIOD_S * share * 1e6)))
        _move(pids, group)
        yield "quota"
    finally:
        # Whoever was begotten meanwhile is in there, too.
        _move([int(pid) for pid in (group / "cgroup.procs").read_text().split()], home)
        wait_until(lambda: _removed(group), f"{group} is empty")


def _cpu_group(pid: int) -> Path:
    """Where a process is."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(path for _, kinds, path in (line.split(":", 2) for line in lines) if "cpu" in kinds.split(","))
    return CPU_GROUPS / path.lstrip("/")


def _move(pids: Sequence[int], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _by_signals(pids: Sequence[int], share: float) -> Iterator[None]:
    stop = threading.Event()

    def throttle() -> None:
        while not stop.is_set():
            signal_all(pids, signal.SIGSTOP)
            time.sleep(QUOTA_PERIOD_S * (1 - share))
            signal_all(pids, signal.SIGCONT)
            time.sleep(QUOTA_PERIOD_S * share)

    throttler = threading.Thread(target=throttle)
    throttler.start()
    try:
        yield
    finally:
        stop.set()
        throttler.join()
        signal_all(pids, signal.SIGCONT)
