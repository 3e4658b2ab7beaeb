"""What is around the process runs short: descriptors, processor, readers of the log, room on disks."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

from harness import ROOT
from injections.scene import Scene, kind
from processes import kill_until_gone, throttled
from wall_clock import WallClock
from wire import Wire


@kind()
def no_descriptors(scene: Scene) -> None:
    """the worker may open hardly a file more, and connections come"""
    worker = scene.server.worker_pid()
    limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{worker}/fd"))
    try:
        with contextlib.ExitStack() as stack:
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + scene.dice.randint(0, 8), limits[1]))
            for _ in range(scene.dice.randint(20, 60)):
                stack.enter_context(Wire(scene.server.http))
            scene.linger(0.5, 3.0)
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)


@kind()
def little_processor(scene: Scene) -> None:
    """a tenth to a third of one processor for some seconds"""
    processes = [scene.server.process.pid, scene.server.worker_pid()]
    with throttled(processes, scene.dice.uniform(0.1, 0.3)):
        scene.linger(2.0, 6.0)


def _blocked_log(scene: Scene) -> None:
    reading, writing = os.pipe()
    scene.log = writing
    scene.stack.callback(os.close, reading)
    scene.stack.callback(os.close, writing)


@kind(config={"http": {"access_log": True}}, prepare=_blocked_log)
def blocked_log(scene: Scene) -> None:
    """nobody reads the log, to which a line goes for each request"""
    scene.linger(3.0, 6.0)


def _full_log(scene: Scene) -> None:
    scene.log = scene.stack.enter_context(open("/dev/full", "wb"))


@kind(config={"http": {"access_log": True}}, prepare=_full_log)
def full_log(scene: Scene) -> None:
    """the disk beneath the log is full"""
    scene.linger(1.0, 3.0)


def _full_disk(scene: Scene) -> None:
    journal = scene.folder / "journal"
    # The journal is written under another name and renamed.
    (scene.folder / "journal.new").symlink_to("/dev/full")
    scene.config["lifecycle"] |= {"crash_journal": str(journal), "termination_log": "/dev/full"}
    library = scene.folder / "libonnxruntime.so"
    found = next(path for path in (ROOT / ".ort").resolve().iterdir() if path.name.startswith("libonnxruntime"))
    library.symlink_to(found)
    scene.config["onnxruntime"] = {"library": str(library)}


@kind(prepare=_full_disk, clients=(1, 2))
def full_disk_and_crash_loop(scene: Scene) -> None:
    """no worker starts any more, and the disk of the crash journal is full: given up in order, and a kubelet starts anew"""
    scene.may_refuse = True
    scene.containers = 1
    library = scene.folder / "libonnxruntime.so"
    found = library.resolve()
    verdict = scene.kubelet.verdict()
    assert verdict.restarts == 0, verdict.failed
    library.unlink()
    kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
    assert scene.server.wait_ended(60) == 70
    library.symlink_to(found)
    # The one that served, and five that died at their start.
    scene.deaths, scene.may_lose = 6, True
    scene.replace(lambda server: server.wait_ended(), 70, scene.deaths)


def _clock(scene: Scene) -> None:
    scene.clock = WallClock(scene.folder)
    scene.env = scene.clock.env


@kind(prepare=_clock)
def wall_clock(scene: Scene) -> None:
    """the wall clock jumps by up to an hour, back and forth"""
    for _ in range(scene.dice.randint(2, 6)):
        scene.clock.set(scene.dice.randint(-3600, 3600))
        scene.linger(0.2, 1.0)
