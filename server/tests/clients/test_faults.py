"""Faults within runs and loads of the real server, on command (`--rehearsal`), under load and with a simulated kubelet watching.

The numbers (T13 and so on) are those of the acceptance tests that the server was built for. Those of the same family that need no
fault on command: `test_healing.py`, `test_worker.py`, `test_overload.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import GLANCE_S, Repository, Server, golden_case, restarts
from kubelet import Kubelet
from rehearsal import Rehearsal
from right_answers import PLUS_ONE, plus_one
from traffic import Traffic
from wire import Wire

START = Callable[..., Server]
WATCH = Callable[[Server], Kubelet]

DEADLINE_S = 1.0
# What a run that was told to end is given at the least, and how late the verdict may be.
GRACE_S, LATE_S = 2.0, 0.2
# What a test adds for a machine that has other things to do: a server that does not see it at all takes for ever.
SLACK_S = 3.0
FOR_EVER_MS = 600_000
LANES = 2


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that answers at once, and one beside it."""
    x = np.array([1.0, 2.0], np.float32)
    repository.add("plus", onnx_models.plus(1), golden=[golden_case({"x": x}, {"y": x + 1})])
    repository.add("other", onnx_models.plus(2))
    return repository.path


@pytest.fixture
def server(rehearse: START, models: Path) -> Server:
    """A server that can be told to fail."""
    config = {"defaults": {"lanes": LANES, "threads": 1, "deadline_ms": int(DEADLINE_S * 1000)}}
    return rehearse(models, config).wait_started().wait_lanes()


def incidents(server: Server) -> list[dict[str, Any]]:
    """What `/status` tells."""
    return server.status().get("incidents", [])


def wait_healed(server: Server, count: int) -> list[dict[str, Any]]:
    """Until so many incidents are over, and the server is as it was."""

    def healed() -> bool:
        return sum("healed_after_ms" in each for each in incidents(server)) >= count

    server.wait_for(healed, f"{count} incidents are healed")
    server.wait_lanes()
    return incidents(server)


# ===== lanes =====


def test_a_blocked_lane_is_replaced_while_others_serve(server: Server, rehearsal: Rehearsal, watch: WATCH) -> None:
    """T13."""
    watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        begun = time.monotonic()
        rehearsal.fault("block", "plus", ms=FOR_EVER_MS).wait()
        server.wait_for(lambda: incidents(server), "the lane is called hung")
        seen_s = time.monotonic() - begun
        assert server.probe("/ready").status == 200, "the other lane lives"
        (incident,) = wait_healed(server, 1)
        traffic.wait_for_more(50)
    assert seen_s <= DEADLINE_S + GRACE_S + LATE_S + SLACK_S, seen_s
    assert incident["reason"] == "hung_blocked", incident
    assert incident["deeds"][0]["rung"] == "lane"
    assert set(traffic.outcomes()) <= {200, 503, 504}, traffic.outcomes()
    assert 1 <= traffic.count(504) <= LANES, "who was on the lane was told at the deadline"
    assert restarts(server) == {}
    assert server.in_flight() == 0, "what the lane held was given back"


def test_with_all_lanes_blocked_it_is_not_ready_and_heals(server: Server, rehearsal: Rehearsal, watch: WATCH) -> None:
    """T14. The new sessions take a while, so that it can be seen."""
    watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        rehearsal.fault("block", "plus", times=LANES, ms=FOR_EVER_MS).wait(LANES)
        rehearsal.fault("slow_load", "plus", times=LANES, ms=5_000)
        server.wait_for(lambda: len(incidents(server)) == LANES, "both are called hung")
        server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503")
        assert server.probe("/live").status == 200, "nobody has to restart it"
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready again", 20)
        wait_healed(server, LANES)
        traffic.wait_for_more(50)
    assert restarts(server) == {}
    assert set(traffic.outcomes()) <= {200, 503, 504}, traffic.outcomes()


@pytest.mark.faults
def test_five_blocked_lanes_escalate_exactly_at_the_budget(server: Server, rehearsal: Rehearsal, watch: WATCH) -> None:
    """T15: two lanes may be replaced in a minute, the third is the worker's end; the next worker has a budget of its own."""
    watch(server)
    deadly = []
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        for number in range(1, 6):
            worker = server.worker_pid()
            rehearsal.fault("block", "plus", ms=FOR_EVER_MS).wait()

            def settled(worker: int = worker, before: int = len(deadly)) -> bool:
                if server.probe("/ready").status != 200:
                    return False
                if server.worker_pid() != worker:
                    return True
                found = incidents(server)
                expected = number - (deadly[-1] if before else 0)
                return len(found) >= expected and all("healed_after_ms" in each for each in found)

            server.wait_for(settled, f"number {number} is healed")
            if server.worker_pid() != worker:
                deadly.append(number)
            assert server.metrics().one("balm_lanes_abandoned") <= 2, number
        traffic.wait_for_more(50)
    assert deadly == [3], "two lanes, then the worker, then two lanes of the next one"
    assert restarts(server) == {"lanes": 1}
    assert "lanes hung too often" in server.status()["supervisor"]["last_end"]["how"]
    assert traffic.lost_by_one() <= 1, "what was in flight on the one that was replaced"
    assert server.probe("/live").status == 200


def test_a_panic_under_load_is_one_answer(server: Server, rehearsal: Rehearsal, watch: WATCH) -> None:
    """T16, the mild one: the process lives on."""
    watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        rehearsal.fault("panic", "plus", times=2).wait(2)
        server.wait_for(lambda: server.metrics().sum("balm_lane_restarts_total") == 2, "both lanes are replaced")
        server.wait_lanes()
        traffic.wait_for_more(50)
    # 503 where both lanes were lost at once.
    assert set(traffic.outcomes()) <= {200, 500, 503, 504}, traffic.outcomes()
    assert 1 <= traffic.count(500) <= 2, "one answer for each panic at most: its neighbours are run again"
    assert restarts(server) == {}


@pytest.mark.parametrize(("name", "reason"), [("SIGSEGV", "segv"), ("SIGABRT", "abort")])
def test_a_run_that_crashes_the_worker_under_load(
    server: Server, rehearsal: Rehearsal, name: str, reason: str, watch: WATCH
) -> None:
    """T16, from within: one signal, as the kernel sends it."""
    watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        rehearsal.fault("signal", "plus", signal=name).wait()
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == 2, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
        traffic.wait_for_more(50)
    assert restarts(server) == {reason: 1}
    assert server.status()["supervisor"]["last_end"]["reason"] == reason
    assert traffic.lost_by_one() <= 1, "in flight alone"
    answered = {outcome for outcome in traffic.outcomes() if isinstance(outcome, int)}
    assert answered <= {200, 503, 504}, traffic.outcomes()


# ===== loads =====


@pytest.mark.faults
def test_a_slow_load_is_no_reason_to_kill(rehearse: START, models: Path, rehearsal: Rehearsal, watch: WATCH) -> None:
    """T30: live all the time, not started and not ready until it is over. (A shorter one is in `test_loads.py`.)"""
    seconds = 60
    rehearsal.fault("slow_load", "other", ms=seconds * 1000)
    server = rehearse(models, {"defaults": {"lanes": 1}})
    begun = time.monotonic()
    kubelet = watch(server)
    seen = set()
    server.wait_for(lambda: server.status()["models"], "the models are on their way")
    while server.probe("/startup").status != 200:
        seen.add((server.probe("/live").status, server.probe("/ready").status))
        assert time.monotonic() < begun + seconds + 30
        time.sleep(GLANCE_S)
    assert time.monotonic() - begun >= seconds * 0.9
    assert (200, 503) in seen and {live for live, _ in seen} == {200}, seen
    assert plus_one(server.http) == 200
    server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
    verdict = kubelet.verdict()
    assert (verdict.restarts, verdict.ready_false) == (0, 0), verdict


def test_probes_answer_beside_five_hundred_connections(server: Server, watch: WATCH) -> None:
    """T30: the probe port is flooded, again and again, and predictions go on."""
    kubelet = watch(server)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            wires = [Wire(server.management) for _ in range(500)]
            stop.wait(0.1)
            for wire in wires:
                wire.socket.close()

    flooding = threading.Thread(target=flood)
    with Traffic(server.http, [PLUS_ONE], pause_s=0.002) as traffic:
        flooding.start()
        try:
            for _ in range(50):
                assert [server.probe(path).status for path in ("/live", "/ready")] == [200, 200]
                time.sleep(0.05)
        finally:
            stop.set()
            flooding.join()
        traffic.wait_for_more(50)
    verdict = kubelet.verdict()
    assert (verdict.restarts, verdict.ready_false) == (0, 0), verdict
    assert set(traffic.outcomes()) <= {200, 503, 504}, traffic.outcomes()
