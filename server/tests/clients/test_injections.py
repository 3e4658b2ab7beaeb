"""Injections find what they are there to find; a few kinds, each with one seed. All of them: `make injections`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from injections import campaign, report
from injections.scene import KINDS, Inject, Outcome, Scene, kind, run
from processes import kill_until_gone

# Those that take a second or two.
QUICK = ("kill", "stray-term", "restart", "disconnects", "corrupt-model", "panics", "segv-in-a-run", "wrong-at-the-load")

Added = Callable[[Inject], str]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[Added]:
    """Adds a kind of this test's own, which can be told to fail. Gives its name."""
    for name in list(KINDS):
        monkeypatch.delitem(KINDS, name)

    def add(inject: Inject) -> str:
        kind(rehearsal=True, clients=(3, 3))(inject)
        (name,) = KINDS
        return name

    yield add
    KINDS.clear()


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_kind_goes_as_promised(name: str, tmp_path: Path) -> None:
    outcome = run(name, 1, tmp_path)
    assert outcome.problems == [], report.line(outcome)
    assert outcome.wrong == outcome.lost == 0 and outcome.healed_s is not None
    assert outcome.answers["200"] > 0


@pytest.mark.faults
def test_every_kind_goes_as_promised_once() -> None:
    """As `make injections ARGS="--seeds 1"`, with a seed of its own each time, which a failure prints."""
    seed = int.from_bytes(os.urandom(2))
    done = campaign.conduct(campaign.jobs(sorted(KINDS), [seed]), 4, None, lambda outcome, *_: print(report.line(outcome)))
    assert len(done) == len(KINDS) > 30
    assert [report.line(each) for each in done if each.problems] == []


# ===== what must be found =====


def test_wrong_answers_are_found(added: Added, tmp_path: Path) -> None:
    def wrong_in_a_lane(scene: Scene) -> None:
        """a lane answers wrongly"""
        scene.fault("wrong", "iris", times=3).wait(3)

    outcome = run(added(wrong_in_a_lane), 1, tmp_path)
    assert 1 <= outcome.wrong, outcome
    assert any("wrong answers" in problem or "answered wrongly" in problem for problem in outcome.problems), outcome


def test_deaths_that_nobody_expects_are_found_and_what_was_lost_with_them(added: Added, tmp_path: Path) -> None:
    def death(scene: Scene) -> None:
        """a worker dies with all that it has in flight, and nothing is said of it"""
        scene.fault("slow_run", times=20, ms=300).wait(3)
        kill_until_gone(scene.server.worker_pid(), signal.SIGKILL)
        scene.server.wait_for(lambda: scene.workers() == 2, "there is another one")

    outcome = run(added(death), 1, tmp_path)
    assert outcome.worker_deaths == 1 and outcome.lost >= 1 and outcome.lost_with_worker == 0
    assert any("never answered" in problem for problem in outcome.problems), outcome
    assert any("1 workers ended, not 0" in problem for problem in outcome.problems), outcome


def test_statuses_that_are_not_for_that_fault_are_found(added: Added, tmp_path: Path) -> None:
    def errors(scene: Scene) -> None:
        """runs fail, and nothing is said of it"""
        scene.fault("error", times=3).wait(3)

    outcome = run(added(errors), 1, tmp_path)
    assert any(problem.startswith("500 on ") for problem in outcome.problems), outcome


def test_a_server_that_does_not_come_back_is_found(added: Added, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(scene: Scene) -> None:
        """a model goes and does not come back"""
        assert scene.server.unload("iris").status == 200

    monkeypatch.setattr("injections.scene.HEAL_S", 2.0)
    outcome = run(added(gone), 1, tmp_path)
    assert outcome.healed_s is None
    assert any("the server is whole" in problem for problem in outcome.problems), outcome


# ===== what is told =====


def test_the_same_seed_decides_the_same(tmp_path: Path) -> None:
    def decided(folder: str, name: str, seed: int) -> list[float]:
        scene = Scene(KINDS[name], seed, tmp_path / folder)
        return [scene.dice.random() for _ in range(8)]

    assert decided("a", "kill", 1) == decided("b", "kill", 1)
    assert decided("c", "kill", 2) != decided("d", "kill", 1) != decided("e", "segv", 1)


def test_campaigns_go_on_where_they_were_cut(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "injections.json"
    assert campaign.read(file) == []
    outcomes = [Outcome("kill", 1, answers={"200": 5, "ConnectionResetError": 1}, lost_with_worker=1, healed_s=0.5)]
    campaign.write(file, outcomes)
    assert campaign.read(file) == outcomes
    assert campaign.jobs(["a", "b"], range(2)) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_the_page_adds_up_and_names_what_went_wrong() -> None:
    outcomes = [
        Outcome("kill", 1, answers={"200": 1500, "ConnectionResetError": 1}, lost_with_worker=1, healed_s=0.5, worker_deaths=1),
        Outcome("kill", 2, answers={"200": 400, "503": 100}, healed_s=1.5, worker_deaths=1, detected_s=0.1),
        Outcome("stop", 7, answers={"200": 10}, lost=1, problems=["1 requests were never answered"]),
    ]
    assert "3 injections of 2 kinds: 0 wrong answers in 2,010, 1 accepted requests without an answer" in report.summary(outcomes)
    assert "but for 1 in flight on workers that were killed (2 were replaced)" in report.summary(outcomes)
    assert report.summary(outcomes).endswith("1 not as promised.\nBALM_INJECTION=stop:7")
    (row,) = [line for line in report.page(outcomes, 4).splitlines() if line.startswith("| `kill` |")]
    assert row.split(" | ")[2:] == [
        "2", "2", "0", "2,000", "1,900", "0", "1", "0", "0.10 · 0.10 s", "1.00 · 1.50 s", "0 |"
    ]  # fmt: skip
    assert "NOT AS PROMISED: 1 requests were never answered" in report.line(outcomes[2])
