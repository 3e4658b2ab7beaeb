"""Servers that fail on command: faults are placed as files in a private folder, which only `--rehearsal` names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import Server, wait_until


class Fault:
    """A fault that was placed, and what has become of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = folder / f"{name}.json"
        self._done = folder / "done"

    @property
    def happened(self) -> int:
        """How often it was claimed: counted before it happens, and also by whom it ended."""
        return sum(1 for trace in self._done.glob(f"{self.name}.*") if trace.suffix[1:].isdigit())

    def wait(self, times: int = 1, patience_s: float = harness.PATIENCE_S) -> None:
        """Until it has happened that often."""
        refused = self._done / f"{self.name}.refused"

        def happened() -> bool:
            assert not refused.exists(), refused.read_text()
            return self.happened >= times

        wait_until(happened, f"{self.name} happens {times} times", patience_s)

    def end(self) -> None:
        """Takes it away."""
        self._file.unlink(missing_ok=True)


class Rehearsal:
    """A folder of faults. Its documentation is that of `inference/src/engine/rehearsal/faults.rs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        self._placed = 0

    @property
    def flags(self) -> list[str]:
        """What makes `balm serve` heed it."""
        return ["--rehearsal", str(self.folder)]

    def fault(self, kind: str, model: str | None = None, **fields: Any) -> Fault:
        """Places a fault; `fields` are those of its kind, and `times` and `at`."""
        self._placed += 1
        # They happen in the order of their names.
        fault = Fault(self.folder, f"{self._placed:04}-{kind.replace('_', '-')}")
        said = {"kind": kind} | ({"model": model} if model else {}) | fields
        new = self.folder / f".{fault.name}.new"
        new.write_text(json.dumps(said))
        new.rename(self.folder / f"{fault.name}.json")
        return fault


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    """An empty folder of faults: start a server with `flags=rehearsal.flags`."""
    return Rehearsal(tmp_path / "faults")


@pytest.fixture
def rehearse(rehearsal: Rehearsal, start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """`start`, but the server fails as `rehearsal` says."""

    def start_one(models: Path, config: harness.Config | None = None, flags: tuple[str, ...] = (), **options: Any) -> Server:
        return start(models, config, flags=[*rehearsal.flags, *flags], **options)

    yield start_one
