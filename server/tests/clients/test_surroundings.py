"""What is around the process runs short: memory, file descriptors, a reader of the log, room for it. The server goes on."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server, wait_until
from tensors import json_input
from wire import Wire

START = Callable[..., Server]

# Lines of the log that wait for their reader (server/src/logs.rs).
LINES_MAX = 4096
X = json_input("x", "FP32", np.array([1.0, 2.0], np.float32))
BODY = json.dumps({"inputs": [X]}).encode()


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that answers at once."""
    repository.add("plus", onnx_models.plus(1))
    return repository.path


def test_memory_that_is_used_up_turns_requests_away_and_no_probe(start: START, models: Path) -> None:
    """A server that holds more than it may, from the start: nobody is let in, and nobody restarts it."""
    server = start(models, {"admission": {"memory_limit_bytes": 20_000_000}}).wait_started()

    def refused() -> bool:
        answer = server.infer("plus", X)
        return answer.status == 503 and answer.headers["x-shed-reason"] == "memory"

    server.wait_for(refused, "requests are refused for memory", 5)
    answer = server.infer("plus", X, headers={"x-request-class": "critical"})
    assert (answer.status, answer.headers["x-shed-reason"]) == (503, "memory"), "the most important ones, too"
    assert int(answer.headers["Retry-After"]) >= 1
    assert [server.probe(path).status for path in ("/live", "/ready", "/startup")] == [200, 200, 200]
    assert server.metrics().sum("balm_shed_total", model="plus", reason="memory") >= 2
    assert "memory pressure" in server.stderr


def test_without_descriptors_connections_wait_and_probes_do_not(start: START, models: Path) -> None:
    server = start(models).wait_started().wait_lanes()
    worker = server.worker_pid()
    limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{worker}/fd"))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 8, limits[1]))
    with ExitStack() as stack:
        hoard = [stack.enter_context(Wire(server.http)) for _ in range(30)]
        server.wait_for(lambda: "connection not accepted" in server.stderr, "descriptors are used up", 5)
        slowest = 0.0
        for _ in range(20):
            asked = time.monotonic()
            assert [server.probe(path).status for path in ("/live", "/ready")] == [200, 200]
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 0.5, slowest
        last = hoard[-1]
        last.head("POST", "/v2/models/plus/infer", {"Content-Length": len(BODY)})
        last.send(BODY)
        # It waits in the backlog, and is served as soon as others leave.
        for wire in hoard[:-1]:
            wire.socket.close()
        answer = last.answer()
        assert answer is not None and answer.status == 200
    assert server.worker_pid() == worker and harness.restarts(server) == {}


@contextmanager
def logging_to(sink: IO[bytes] | int, folder: Path, models: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """A server that logs each request to `sink`, and the addresses of its data and management ports."""
    config = folder / "balm.toml"
    config.write_text(harness.toml({"http": {"access_log": True}, "lifecycle": {"drain_delay_ms": 0}}))
    process = subprocess.Popen(
        [
            *(str(harness.binary()), "serve", "--models", str(models), "--config", str(config)),
            *("--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=sink,
        cwd=harness.ROOT,
        env=harness.environment(),
    )
    try:
        assert process.stdout
        lines = [process.stdout.readline().decode() for _ in range(2)]
        addresses = [match[1] for line in lines if (match := re.search(r"http://(\S+)", line))]
        assert len(addresses) == 2, lines
        data, management = addresses
        wait_until(lambda: harness.ask(management, "GET", "/ready").status == 200, "it is ready")
        yield process, data, management
    finally:
        process.kill()
        process.wait()


def ask_often(data: str, management: str, count: int) -> None:
    """So many predictions, all answered, none of them late, with probes between them."""
    # In one piece: two would wait for each other's acknowledgement. A long id fills the log the sooner.
    head = f"POST /v2/models/plus/infer HTTP/1.1\r\nHost: test\r\nContent-Length: {len(BODY)}\r\nx-request-id: {'r' * 64}"
    request = f"{head}\r\n\r\n".encode() + BODY
    slowest = 0.0
    with Wire(data) as wire:
        for number in range(count):
            asked = time.monotonic()
            wire.send(request)
            answer = wire.answer()
            assert answer is not None and answer.status == 200, number
            slowest = max(slowest, time.monotonic() - asked)
            if number % 100 == 0:
                assert harness.ask(management, "GET", "/live").status == 200
    assert slowest < 1.0, slowest


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path: Path, models: Path) -> None:
    """More lines than queue and pipe take. They are dropped, counted, and told when somebody reads again."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with logging_to(writing, tmp_path, models) as (process, data, management):
            os.close(writing)
            writing = -1
            ask_often(data, management, LINES_MAX + 500)
            process.terminate()
            with os.fdopen(reading, "rb") as log:
                reading = -1
                text = log.read().decode(errors="replace")
            assert process.wait(15) == 0
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)
    assert "log lines dropped: " in text, text[-500:]


def test_a_log_on_a_full_disk_holds_nobody_up(tmp_path: Path, models: Path) -> None:
    with open("/dev/full", "wb") as full, logging_to(full, tmp_path, models) as (process, data, management):
        ask_often(data, management, 300)
        process.terminate()
        assert process.wait(15) == 0
