"""Runs and loads that fail within the engine, on command: `--rehearsal`."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from injections.scene import LANES, Scene, Seen, kind
from processes import kill_until_gone

# Longer than anything waits for it.
FOR_EVER_MS = 600_000


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
    """a newer version's load hangs for ever, once or twice: tried again or given up, the older one goes on"""
    model = scene.model()
    newer = scene.newer(model)
    times = scene.dice.randint(1, 2)
    scene.fault("hang_load", model, times=times, ms=FOR_EVER_MS)
    answer = scene.server.load(model)
    assert answer.status == (200 if times == 1 else 400), answer
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
