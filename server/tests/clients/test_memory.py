"""Memory that grows: the worker is replaced before the kernel kills it, and nobody is replaced for memory that only rose."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
import onnx_models
from harness import Repository, Server, restarts
from kubelet import Kubelet
from rehearsal import Rehearsal

WATCH = Callable[[Server], Kubelet]

MB = 1 << 20
LIMIT = 600 * MB
# What a request leaves behind, and how often one comes: 25 MB a second.
LEAK = 5 * MB
PACE_S = 0.2
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}
# Far more than a drain and a load take.
SOCKET_S = 20.0


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that answers what it was asked."""
    repository.add("same", onnx_models.identity("FP32", ["rows", "columns"]), settings="lanes = 1\n")
    return repository.path


def limited(bytes_: int) -> dict[str, Any]:
    """Settings with a limit of memory for the worker. Nothing ends by being late on a machine that is busy."""
    return {
        "admission": {"memory_limit_bytes": bytes_},
        "defaults": {"deadline_ms": 20_000, "max_deadline_ms": 20_000},
    }


def ask(server: Server) -> int:
    """The status of one request on a connection of its own; 0 where there was no answer."""
    try:
        return server.ask("POST", "/v2/models/same/infer", json.dumps({"inputs": [X]}), timeout_s=SOCKET_S).status
    except OSError:
        return 0


def resident(pid: int) -> int:
    """What the process holds, bytes; 0 once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def paced(server: Server, until: Callable[[int], bool]) -> tuple[list[int], float]:
    """Statuses of requests that come one after the other at the pace, and the most that a worker held, as part of the limit."""
    statuses: list[int] = []
    most = 0
    due = time.monotonic()
    while not until(len(statuses)):
        statuses.append(ask(server))
        pid = server.status()["supervisor"].get("worker_pid")
        most = max(most, resident(pid) if pid else 0)
        due += PACE_S
        time.sleep(max(0.0, due - time.monotonic()))
    return statuses, most / LIMIT


def test_a_leak_has_the_worker_replaced_and_nobody_is_refused(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """The outcome of T20; how early it is seen is measured by the test below, on a machine that is not busy."""
    server = rehearse(models, limited(LIMIT)).wait_settled()
    watch(server)
    leak = rehearsal.fault("leak", "same", times=1000, bytes=LEAK)
    first = server.worker_pid()
    statuses, _ = paced(server, lambda asked: asked >= 1000 or asked % 5 == 0 and restarts(server) != {})
    leak.end()
    assert restarts(server) == {"memory": 1}
    assert set(statuses) == {200}, statuses
    server.wait_for(lambda: server.probe("/ready").status == 200, "ready again")
    assert server.worker_pid() != first
    end = server.status()["supervisor"]["last_end"]
    assert end["reason"] == "memory" and "MiB are used" in end["how"], end
    assert server.metrics().one("balm_worker_lost_requests_total") == 0
    assert "incident: acted" in server.stderr and 'replacing the worker in order reason="memory"' in server.stderr


def test_memory_that_rises_and_stays_replaces_nobody(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """A step to nearly four fifths of the limit, as an arena makes it for a larger shape, and then rest."""
    server = rehearse(models, limited(LIMIT)).wait_settled()
    watch(server)
    step = rehearsal.fault("leak", "same", bytes=LIMIT * 77 // 100 - resident(server.worker_pid()))
    first = server.worker_pid()
    statuses, most = paced(server, lambda asked: asked >= 60)
    assert step.happened == 1 and most > 0.7, most
    assert set(statuses) == {200}
    assert server.worker_pid() == first and restarts(server) == {}
    assert server.status().get("incidents", []) == []


def test_without_a_supervisor_live_fails_before_the_kernel_kills(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    """Whoever restarts the process ends it in order: it still serves, and goes on until it is told."""
    server = rehearse(models, limited(LIMIT), flags=("--single-process",)).wait_settled()
    rehearsal.fault("leak", "same", times=1000, bytes=LEAK)
    deadline = time.monotonic() + 4 * harness.PATIENCE_S
    while server.probe("/live").status == 200:
        assert time.monotonic() < deadline, "live although memory leaks"
        assert ask(server) == 200
        time.sleep(PACE_S)
    assert "memory was about to run out" in server.probe("/live").text
    (incident,) = server.status()["incidents"]
    assert incident["reason"] == "memory_leak" and "the worker has to be replaced" in incident["story"]
    server.terminate()
    assert server.wait_ended() == 0


@pytest.mark.faults
def test_a_leak_is_seen_before_nine_tenths_of_the_limit(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """T20: 5 MB a request, nearly twice the limit in all; that takes no more workers than may be replaced in five minutes."""
    server = rehearse(models, limited(LIMIT)).wait_settled()
    watch(server)
    rehearsal.fault("leak", "same", times=1000, bytes=LEAK)
    statuses, most = paced(server, lambda asked: asked >= 220)
    found = restarts(server)
    print(f"\n{len(statuses)} requests, {statuses.count(200)} answered, at most {most:.0%} of the limit, replaced {found}")
    assert set(found) == {"memory"} and found["memory"] >= 2, found
    assert statuses.count(200) >= 0.99 * len(statuses)
    assert most < 0.9
