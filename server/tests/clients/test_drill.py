"""`balm drill` rehearses on a private copy, tells what came of it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
import onnx_models
from harness import Repository

USAGE, INTERRUPTED = 64, 143
# A card takes some seconds on an idle machine; nothing here judges how many.
PATIENCE_S = 240


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Path]:
    """Where drills of this test put their folders. Whatever becomes of a drill, nothing is left there."""
    folder = tmp_path / "private"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that have to do with the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(folder)) for word in words):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def command(*arguments: str | Path) -> list[str]:
    """`balm drill` with these arguments."""
    return [str(harness.binary()), "drill", *map(str, arguments)]


def drill(private: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`balm drill` to its end."""
    return subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=harness.ROOT,
        env=harness.environment({"TMPDIR": str(private)}),
    )


def checks(card: dict[str, Any]) -> dict[str, bool]:
    """What was expected of a card, and whether it holds."""
    return {check["what"]: check["passed"] for check in card["checks"]}


def test_cards_are_played_and_told_of_in_every_form(private: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(harness.SHIPPED_MODELS, models)
    before = {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}
    # A configuration whose addresses and files are somebody's who serves.
    taken = tmp_path / "journal"
    config = tmp_path / "balm.toml"
    config.write_text(
        '[http]\naddr = "unix:/nowhere/balm.sock"\n[management]\naddr = "127.0.0.1:1"\n'
        f'[lifecycle]\nsingle_process = true\ncrash_journal = "{taken}"\n[repository]\ncontrol = false\n'
    )
    (report, page) = (tmp_path / "report.json", tmp_path / "report.html")
    result = drill(
        private,
        *("--models", models, "--config", config, "--json", report, "--html", page, "--seed", "7"),
        *("--cards", "crash,corrupted-model,panic"),
    )
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "passed: 3 of 3 cards passed" in result.stdout
    assert result.stderr == "", "progress is for terminals"
    told = json.loads(report.read_text())
    assert (told["schema"], told["passed"], told["seed"]) == (1, True, 7)
    assert {model["name"] for model in told["models"]} == {"iris", "digits", "breast_cancer"}
    cards = {card["name"]: card for card in told["cards"]}
    assert list(cards) == ["panic", "crash", "corrupted-model"]
    for card in cards.values():
        assert card["status"] == "passed" and all(checks(card).values()), card
        assert card["requests"]["wrong"] == 0 and card["kubelet_restarts"] == 0
        assert card["requests"]["right"] > 0
        assert card["sentence"] in result.stdout
    assert cards["crash"]["workers_replaced"] == 1
    assert cards["panic"]["requests"]["refused"] == {"500": 1}
    assert checks(cards["corrupted-model"])["the load of the damaged model"]
    html = page.read_text()
    assert html.startswith("<!DOCTYPE html>") and html.count("<svg") == 3
    # Neither the models nor the files of the user were touched.
    assert {file: file.read_bytes() for file in models.rglob("*") if file.is_file()} == before
    assert not taken.exists()


def test_a_full_disk_and_a_crash_are_survived(private: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = drill(private, "--models", harness.SHIPPED_MODELS, "--cards", "full-disk", "--json", report)
    assert result.returncode == 0, (result.stdout, result.stderr)
    (card,) = json.loads(report.read_text())["cards"]
    assert card["workers_replaced"] == 1 and card["requests"]["wrong"] == 0


def test_what_cannot_be_played_is_said_and_fails_nothing(repository: Repository, private: Path) -> None:
    model = onnx_models.identity("FP32", ["rows", "columns"])
    repository.add("bare", model, manifest=False, settings='versions = [1]\n')
    result = drill(private, "--models", repository.path, "--cards", "corrupted-model,slow-load")
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "`balm manifest` writes one" in result.stdout
    assert "says which versions serve" in result.stdout
    assert "0 of 0 cards passed, 2 not played" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drill_that_is_interrupted_leaves_nothing(private: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        # The worker is stopped for ten seconds: it would not notice that its supervisor is gone.
        command("--models", harness.SHIPPED_MODELS, "--cards", "stop"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=harness.ROOT,
        env=harness.environment({"TMPDIR": str(private)}),
    )
    try:
        harness.wait_until(lambda: list(private.glob("*/faults/done/*.1")), "the worker stops itself", PATIENCE_S)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == INTERRUPTED
    assert "nothing is left of the drill" in errors
    # What was killed is reaped by whoever reaps orphans here.
    harness.wait_until(lambda: processes_of(private) == [], "no process is left")


def test_bad_input_is_told_and_ends_with_64(repository: Repository, private: Path, tmp_path: Path) -> None:
    broken = repository.add("broken", b"no model")
    assert broken.is_dir()
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad.toml"
    bad.write_text("[htp]\n")
    shipped = ("--models", harness.SHIPPED_MODELS)
    for arguments, said in [
        ((*shipped, "--cards", "crush"), 'there is no card "crush"; there are overload, hung-lane'),
        (("--models", tmp_path / "absent"), "absent"),
        (("--models", tmp_path / "empty"), "no model serves"),
        (("--models", repository.path), "broken is failed"),
        ((*shipped, "--config", bad), "htp"),
        ((*shipped, "--cards", "panic", "--html", tmp_path / "absent/page.html"), "page.html"),
        (("--wat",), "--wat"),
    ]:
        result = drill(private, *arguments)
        assert result.returncode == USAGE, (arguments, result)
        assert said in result.stderr, (arguments, result.stderr)
        assert "panicked" not in result.stderr and result.stdout == ""
