"""Processes that die, stop, or are told to end."""

from __future__ import annotations

import os
import signal
import time

from harness import Server
from processes import kill_until_gone, signal_all
from injections.scene import Scene, Seen, kind, terminated


def _kill(scene: Scene, number: int) -> Seen:
    kill_until_gone(scene.server.worker_pid(), number)
    return scene.replaced()


@kind()
def kill(scene: Scene) -> Seen:
    """the worker is killed (SIGKILL), as by the kernel for memory"""
    return _kill(scene, signal.SIGKILL)


@kind()
def segv(scene: Scene) -> Seen:
    """the worker dies of SIGSEGV"""
    return _kill(scene, signal.SIGSEGV)


@kind()
def abort(scene: Scene) -> Seen:
    """the worker dies of SIGABRT"""
    return _kill(scene, signal.SIGABRT)


@kind()
def bus(scene: Scene) -> Seen:
    """the worker dies of SIGBUS"""
    return _kill(scene, signal.SIGBUS)


@kind()
def kill_again(scene: Scene) -> Seen:
    """the worker dies, and the next one up to two seconds later, whatever it is at"""
    first = scene.server.worker_pid()
    kill_until_gone(first, scene.dice.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
    scene.server.wait_for(lambda: scene.server.worker_pid() not in (first, scene.server.process.pid), "there is another")
    scene.linger(0.0, 2.0)
    kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
    return scene.replaced(2)


@kind()
def stop(scene: Scene) -> Seen:
    """the worker stands still (SIGSTOP) and does not come back"""
    os.kill(scene.server.worker_pid(), signal.SIGSTOP)
    return scene.replaced()


@kind()
def pause(scene: Scene) -> None:
    """the worker stands still for up to five seconds"""
    worker = scene.server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        scene.linger(0.2, 5.0)
    finally:
        os.kill(worker, signal.SIGCONT)


@kind()
def freeze(scene: Scene) -> None:
    """the whole machine stands still for up to fifteen seconds"""
    processes = [scene.server.process.pid, scene.server.worker_pid()]
    scene.dice.shuffle(processes)
    scene.kubelet.pause()
    signal_all(processes, signal.SIGSTOP)
    try:
        scene.linger(1.0, 15.0)
    finally:
        scene.dice.shuffle(processes)
        signal_all(processes, signal.SIGCONT)
        scene.kubelet.resume()


@kind()
def stray_term(scene: Scene) -> Seen:
    """the worker alone is told to end (SIGTERM): nobody may lose anything"""
    scene.server.signal_worker(signal.SIGTERM)
    return scene.replaced(may_lose=False)


@kind()
def restart(scene: Scene) -> None:
    """the server is told to end (SIGTERM) under load, and another takes its place"""
    scene.may_refuse = True
    verdict = scene.kubelet.verdict()
    assert verdict.restarts == 0, verdict.failed
    scene.replace(terminated, 0)


@kind()
def supervisor_killed(scene: Scene) -> None:
    """the supervisor is killed, the worker finishes by itself, a kubelet starts the next container"""
    scene.may_refuse = True
    scene.containers = 1
    verdict = scene.kubelet.verdict()
    assert verdict.restarts == 0, verdict.failed

    def killed(server: Server) -> int:
        server.process.kill()
        return server.wait_ended()

    scene.replace(killed, -signal.SIGKILL)


@kind(config={"http": {"threads": 1}})
def half_stop(scene: Scene) -> None:
    """the worker is stopped and goes on ten times, a moment each"""
    worker = scene.server.worker_pid()
    for _ in range(10):
        os.kill(worker, signal.SIGSTOP)
        time.sleep(scene.dice.uniform(0.01, 0.3))
        os.kill(worker, signal.SIGCONT)
        time.sleep(scene.dice.uniform(0.01, 0.1))
