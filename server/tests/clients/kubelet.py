"""A simulated kubelet as a witness: what a cluster would have made of a server's probes meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import harness
from harness import Server

# How often it asks. A tenth of what a careful manifest says, so that it is ten times as easy to displease.
PERIOD_MS = 200
# It ends by itself after so long, whatever becomes of the test.
WATCH_S = 600


@dataclass(frozen=True)
class Verdict:
    """What it saw."""

    # Times that it would have killed the container.
    restarts: int
    # Times that it would have stopped sending traffic, having sent some.
    ready_false: int
    # Whether it would send traffic at the end.
    ready: bool
    # Probes that it has asked, and those of them that failed, in words.
    polls: int
    failed: tuple[str, ...]


def tool() -> Path:
    """The load generator beside the server under test; `cargo build --workspace` makes both."""
    found = harness.binary().with_name("balm-loadtest")
    assert found.is_file(), f"{found} is missing; `cargo build --workspace` makes it"
    return found


class Kubelet:
    """`balm-loadtest watch` on the probes of one server, as a process of its own, until `verdict` or the end of a `with`."""

    def __init__(self, server: Server, seconds: int = WATCH_S) -> None:
        command = [
            *(str(tool()), "watch", "--management", f"http://{server.management}", "--seconds", str(seconds)),
            *("--live", "/live", "--ready", "/ready", "--period-ms", str(PERIOD_MS)),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._verdict: Verdict | None = None

    def __enter__(self) -> Kubelet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.verdict()

    def pause(self) -> None:
        """Stands still, as when the whole machine does."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on."""
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def told(self) -> bool:
        """Whether it has been asked what it saw."""
        return self._verdict is not None

    def verdict(self) -> Verdict:
        """Ends the watch. What it saw."""
        if self._verdict is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                out, err = self.process.communicate(timeout=20)
            finally:
                self.process.kill()
                self.process.wait()
            assert self.process.returncode == 0, err
            seen = json.loads(out)
            self._verdict = Verdict(
                restarts=seen["restarts"],
                ready_false=seen["ready_false"],
                ready=seen["ready"],
                polls=sum(probe["polls"] for probe in seen["probes"]),
                failed=tuple(f"{probe['path']}: {each['why']}" for probe in seen["probes"] for each in probe["failed"]),
            )
        return self._verdict
