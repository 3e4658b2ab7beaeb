"""Many injections, some at once, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import harness
from injections import by_clients, by_engine, by_files, by_signals, by_surroundings
from injections.scene import Outcome, run

# Imported for the kinds in them.
SOURCES = (by_signals, by_clients, by_files, by_surroundings, by_engine)

Job = tuple[str, int]


def jobs(kinds: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Every kind with every seed, seed by seed, so that a campaign that is cut short has tried every kind."""
    return [(kind, seed) for seed in seeds for kind in kinds]


def do(job: Job) -> Outcome:
    """One injection, in a folder that goes with it unless something was wrong."""
    kind, seed = job
    folder = Path(tempfile.mkdtemp(prefix=f"balm-{kind}-{seed}-"))
    outcome = run(kind, seed, folder)
    outcome.commit = commit()
    if outcome.problems:
        outcome.problems.append(f"what is left of it: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def commit() -> str:
    """What is checked out, with a plus where it was changed."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=harness.ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def conduct(
    todo: Iterable[Job], at_once: int, end: float | None, tell: Callable[[Outcome, int, int], None]
) -> list[Outcome]:
    """Does them, so many at once, and begins no more after `end`. `tell` hears of each: which, how many, of how many."""
    waiting = list(todo)
    count = len(waiting)
    done: list[Outcome] = []
    # Not forked: threads of a parent do not go along.
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        running: set[Any] = set()
        while waiting or running:
            while waiting and len(running) < at_once and (end is None or time.monotonic() < end):
                running.add(pool.submit(do, waiting.pop(0)))
            if not running:
                break
            finished = next(as_completed(running))
            running.remove(finished)
            done.append(finished.result())
            tell(done[-1], len(done), count)
    return done


# ===== what was done before =====


def read(file: Path) -> list[Outcome]:
    """Outcomes of a file; none where there is none."""
    if not file.is_file():
        return []
    names = {each.name for each in fields(Outcome)}
    return [Outcome(**{key: value for key, value in each.items() if key in names}) for each in json.loads(file.read_text())]


def write(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes them whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps([each.to_json() for each in outcomes], indent=1) + "\n")
    os.replace(new, file)
