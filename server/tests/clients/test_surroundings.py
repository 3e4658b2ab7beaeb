"""What is around the process runs short: memory, file descriptors, a reader of the log, room for it. The server goes on."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server
from kubelet import Kubelet
from right_answers import PLUS_ONE
from tensors import json_input
from traffic import Traffic
from wall_clock import WallClock
from wire import Wire

START = Callable[..., Server]
WATCH = Callable[[Server], Kubelet]

# Lines of the log that wait for their reader (server/src/logs.rs).
LINES_MAX = 4096
X = json_input("x", "FP32", np.array([1.0, 2.0], np.float32))
BODY = json.dumps({"inputs": [X]}).encode()


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that answers at once."""
    repository.add("plus", onnx_models.plus(1))
    return repository.path


def test_memory_that_is_used_up_turns_requests_away_and_no_probe(start: START, models: Path, watch: WATCH) -> None:
    """A server that holds more than it may, from the start: nobody is let in, and nobody restarts it."""
    server = start(models, {"admission": {"memory_limit_bytes": 20_000_000}}).wait_started()
    watch(server)

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


def test_without_descriptors_connections_wait_and_probes_do_not(start: START, models: Path, watch: WATCH) -> None:
    server = start(models).wait_started().wait_lanes()
    watch(server)
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


def ask_often(server: Server, count: int) -> None:
    """So many predictions, all answered, none of them late, with probes between them."""
    # In one piece: two would wait for each other's acknowledgement. A long id fills the log the sooner.
    head = f"POST /v2/models/plus/infer HTTP/1.1\r\nHost: test\r\nContent-Length: {len(BODY)}\r\nx-request-id: {'r' * 64}"
    request = f"{head}\r\n\r\n".encode() + BODY
    slowest = 0.0
    with Wire(server.http) as wire:
        for number in range(count):
            asked = time.monotonic()
            wire.send(request)
            answer = wire.answer()
            assert answer is not None and answer.status == 200, number
            slowest = max(slowest, time.monotonic() - asked)
            if number % 100 == 0:
                assert server.probe("/live").status == 200
    # Who waits for the log waits for ever.
    assert slowest < 5.0, slowest


LOGS_MUCH = {"http": {"access_log": True}}


def test_a_log_that_nobody_reads_holds_nobody_up(start: START, models: Path, watch: WATCH) -> None:
    """More lines than queue and pipe take. They are dropped, counted, and told when somebody reads again."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as log:
        with os.fdopen(writing, "wb") as end:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
            server = start(models, LOGS_MUCH, log=end).wait_started()
        kubelet = watch(server)
        ask_often(server, LINES_MAX + 500)
        verdict = kubelet.verdict()
        server.terminate()
        text = log.read().decode(errors="replace")
    assert server.wait_ended() == 0
    assert "log lines dropped: " in text, text[-500:]
    assert (verdict.restarts, verdict.ready_false) == (0, 0), verdict


def test_a_log_on_a_full_disk_holds_nobody_up(start: START, models: Path, watch: WATCH) -> None:
    with open("/dev/full", "wb") as full:
        server = start(models, LOGS_MUCH, log=full).wait_started()
    watch(server)
    ask_often(server, 300)


def test_a_wall_clock_that_jumps_is_nobodys_trouble(start: START, models: Path, tmp_path: Path, watch: WATCH) -> None:
    """Whatever is due is due by a clock that does not jump; that of the wall is for people."""
    clock = WallClock(tmp_path)
    server = start(models, env=clock.env).wait_started()
    worker = server.worker_pid()
    kubelet = watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.01) as traffic:
        for hours in (1, -1, 0, 24 * 365, 0):
            clock.set(hours * 3600)
            begun = server.status()["since_ms"]
            traffic.wait_for_more(50)
            # Long enough for what is due within a second or two, were it due by that clock.
            time.sleep(0.5)
            assert server.status()["since_ms"] == begun
    assert set(traffic.outcomes()) <= {200, 503, 504}, traffic.outcomes()
    verdict = kubelet.verdict()
    assert (verdict.restarts, verdict.ready_false) == (0, 0), verdict
    assert server.worker_pid() == worker and harness.restarts(server) == {}
    assert server.status().get("incidents", []) == []
    clock.set(3600)
    server.signal_worker(signal.SIGKILL)
    server.wait_for(lambda: server.probe("/ready").status == 200 and server.worker_pid() != worker, "another one serves")
    told_ms = server.status()["supervisor"]["last_end"]["at_ms"]
    assert abs(told_ms / 1000 - time.time() - 3600) < 60, "the server sees that clock"
