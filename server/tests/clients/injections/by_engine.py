"""Runs and loads that fail within the engine, on command: `--rehearsal`."""

from __future__ import annotations

import shutil
import signal
import time
from http.client import HTTPException
from pathlib import Path

import numpy as np

from injections.scene import LANES, Scene, Seen, kind
from processes import kill_until_gone
from right_answers import RANGES
from tensors import json_input

# Longer than anything waits for it.
FOR_EVER_MS = 600_000
# No question of the other clients begins so.
POISON = 666.0


def _incident(scene: Scene, count: int = 1) -> Seen:
    """Whether `/status` tells of so many."""
    return lambda: len(scene.incidents()) >= count


# ===== lanes =====


@kind(rehearsal=True)
def blocked_lane(scene: Scene) -> Seen:
    """a run waits for ever, whoever cancels it"""
    scene.fault("block", scene.model(), ms=FOR_EVER_MS).wait()
    return _incident(scene)


@kind(rehearsal=True)
def spinning_lane(scene: Scene) -> Seen:
    """a run computes on, whoever cancels it"""
    scene.fault("spin", scene.model(), ms=scene.dice.randint(6_000, 9_000)).wait()
    return _incident(scene)


@kind(rehearsal=True)
def blocked_lanes(scene: Scene) -> Seen:
    """every lane of a model waits for ever"""
    scene.fault("block", scene.model(), times=LANES, ms=FOR_EVER_MS).wait(LANES)
    return _incident(scene, LANES)


@kind(rehearsal=True)
def blocked_again(scene: Scene) -> Seen:
    """a lane more is blocked than may be replaced in a minute: the worker is replaced"""
    model = scene.model()
    for _ in range(3):
        # As many as may be told apart.
        scene.fault("block", model, ms=FOR_EVER_MS).wait()
        scene.linger(0.0, 1.0)
    return scene.replaced()


@kind(rehearsal=True)
def panics(scene: Scene) -> Seen:
    """up to four runs panic"""
    scene.statuses = {500}
    times = scene.dice.randint(1, 4)
    scene.fault("panic", scene.model(), times=times).wait(times)
    return lambda: scene.server.metrics().sum("balm_lane_restarts_total") >= times


@kind(rehearsal=True)
def failing_runs(scene: Scene) -> None:
    """runs of a model fail by the dozen, until its breaker opens or the fault is over"""
    scene.statuses = {500}
    fault = scene.fault("error", scene.model(), times=scene.dice.randint(5, 60))
    scene.linger(1.0, 4.0)
    fault.end()


@kind(rehearsal=True)
def slow_runs(scene: Scene) -> None:
    """runs take up to half a second longer, dozens of them, of any model"""
    fault = scene.fault("slow_run", times=scene.dice.randint(10, 60), ms=scene.dice.randint(20, 500))
    scene.linger(1.0, 4.0)
    fault.end()


# ===== the process, from within a run =====


def _fatal(scene: Scene, name: str) -> Seen:
    scene.fault("signal", scene.model(), signal=name).wait()
    return scene.replaced()


@kind(rehearsal=True)
def segv_in_a_run(scene: Scene) -> Seen:
    """a run crashes the worker (SIGSEGV)"""
    return _fatal(scene, "SIGSEGV")


@kind(rehearsal=True)
def abort_in_a_run(scene: Scene) -> Seen:
    """a run aborts the worker (SIGABRT)"""
    return _fatal(scene, "SIGABRT")


@kind(rehearsal=True)
def stop_in_a_run(scene: Scene) -> Seen:
    """a run stops the whole worker (SIGSTOP)"""
    return _fatal(scene, "SIGSTOP")


@kind(rehearsal=True)
def lost_gpu(scene: Scene) -> Seen:
    """a run fails as a GPU does that only another process mends"""
    scene.statuses = {500}
    scene.fault("sticky", scene.model()).wait()
    return scene.replaced()


# ===== loads =====


def _let_go(scene: Scene, model: str, newer: Path) -> None:
    """Back to the first version."""
    shutil.rmtree(newer)
    assert scene.server.load(model).status == 200


@kind(rehearsal=True)
def slow_load(scene: Scene) -> None:
    """a newer version takes seconds longer to load: the older one goes on until then"""
    model = scene.model()
    newer = scene.newer(model)
    fault = scene.fault("slow_load", model, ms=scene.dice.randint(500, 4_000))
    assert scene.server.load(model).status == 200
    assert fault.happened
    _let_go(scene, model, newer)


@kind(rehearsal=True)
def slow_start(scene: Scene) -> Seen:
    """the worker dies, and the next one takes seconds longer to load a model"""
    scene.fault("slow_load", scene.model(), ms=scene.dice.randint(500, 4_000))
    kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
    return scene.replaced()


# What a load may take here. Far above what it takes, and far below what it may by default.
LOAD_LIMIT = {"repository": {"load_timeout_ms": 2_000}}


@kind(config=LOAD_LIMIT, rehearsal=True)
def hung_load(scene: Scene) -> None:
    """a newer version's load hangs, once or twice: tried again or given up, the older one goes on, and a later load serves it"""
    model = scene.model()
    newer = scene.newer(model)
    times = scene.dice.randint(1, 2)
    # Longer than it is waited for: the limit, and two seconds for being told.
    scene.fault("hang_load", model, times=times, ms=8_000)
    answer = scene.server.load(model)
    assert answer.status == (200 if times == 1 else 400), answer
    # Two that hang are as many as may, until one has come to its end.
    scene.server.wait_for(lambda: scene.server.load(model).status == 200, "what hung has ended, and it is loaded")
    _let_go(scene, model, newer)


@kind(config=LOAD_LIMIT, rehearsal=True)
def hung_start(scene: Scene) -> Seen:
    """the worker dies, and in the next one a load hangs: told to end, and tried again"""
    fault = scene.fault("hang_load", scene.model(), ms=FOR_EVER_MS)
    kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
    fault.wait()
    return scene.replaced()


@kind(rehearsal=True)
def wrong_at_the_load(scene: Scene) -> None:
    """a newer version's session gives wrong answers from its load on: quarantined before it answers anybody"""
    model = scene.model()
    newer = scene.newer(model)
    fault = scene.fault("wrong", model, at="load", times=1000)
    answer = scene.server.load(model)
    assert answer.status == 400, answer
    assert fault.happened
    fault.end()
    scene.linger(0.0, 1.0)
    _let_go(scene, model, newer)


def _leave_one_alone(scene: Scene) -> None:
    scene.unasked = scene.model()


@kind(rehearsal=True, prepare=_leave_one_alone)
def wrong_where_nobody_asks(scene: Scene) -> Seen:
    """a model that no client asks answers wrongly: canaries find it before anybody is answered"""
    # Two canaries in a row have to fail.
    fault = scene.fault("wrong", scene.unasked, times=1000)
    fault.wait(2, patience_s=90)
    fault.end()
    return _incident(scene)


@kind(rehearsal=True)
def death_at_the_start(scene: Scene) -> Seen:
    """the worker dies, and so do the next one, two or three at their start"""
    times = scene.dice.randint(1, 3)
    fault = scene.fault("die_at_start", times=times)
    kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
    fault.wait(times)
    return scene.replaced(1 + times)


@kind(rehearsal=True)
def two_at_once(scene: Scene) -> Seen:
    """a lane is blocked, and before that is healed the worker dies"""
    scene.fault("block", scene.model(), ms=FOR_EVER_MS).wait()
    time.sleep(scene.dice.uniform(0.0, 4.0))
    kill_until_gone(scene.server.worker_pid(), scene.dice.choice([signal.SIGSEGV, signal.SIGKILL]))
    return scene.replaced()


# ===== memory, and requests that kill =====

# A worker of these models holds some 70 MB.
MEMORY_LIMIT = {"admission": {"memory_limit_bytes": 320 << 20}}


@kind(config=MEMORY_LIMIT, rehearsal=True)
def leak(scene: Scene) -> Seen:
    """every run of a model keeps some hundred kilobytes: the worker is replaced in order, before its limit"""
    fault = scene.fault("leak", scene.model(), times=1000, bytes=scene.dice.randint(300_000, 800_000))
    scene.server.wait_for(lambda: scene.workers() > 1, "the worker is replaced", 90)
    fault.end()
    return scene.replaced(may_lose=False)


@kind(rehearsal=True)
def poison(scene: Scene) -> Seen:
    """a request that crashes the worker is sent again and again: refused at the third time, and nobody else is"""
    model = scene.model()
    width = RANGES[model][0]
    scene.fault("crash_on", model, value=POISON)
    features = json_input("features", "FP32", np.full((1, width), POISON, np.float32))
    statuses: list[int] = []
    while statuses.count(422) < 3:
        assert len(statuses) < 10, statuses
        try:
            statuses.append(scene.server.infer(model, features).status)
        except (OSError, HTTPException):
            statuses.append(0)
    assert statuses.count(0) == 2 and set(statuses) <= {0, 422, 503, 504}, statuses
    return scene.replaced(2)


@kind(rehearsal=True)
def crashes_by_chance(scene: Scene) -> Seen:
    """the worker crashes twice in runs of which none is to blame, each cleared before the next: nobody is refused for it"""
    for number in (1, 2):
        scene.fault("signal", scene.model(), signal=scene.dice.choice(["SIGSEGV", "SIGABRT"])).wait()
        _wait_for_worker(scene, number + 1)
    return scene.replaced(2)


def _wait_for_worker(scene: Scene, number: int) -> None:
    def there() -> bool:
        told = scene.server.status()["supervisor"]
        cleared = told["workers_started"] >= number and told["suspects"] == 0
        return cleared and scene.server.probe("/ready").status == 200

    scene.server.wait_for(there, f"worker number {number} is ready, and nobody is suspected")
    scene.linger(0.0, 0.5)
