"""One injection: a server of its own, clients, a kubelet, a fault, and what became of all of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import onnx

from harness import SHIPPED_MODELS, NotListed, Server, wait_until, write_manifest
from kubelet import Kubelet
from rehearsal import Fault, Rehearsal
from right_answers import RANGES, Question, questions
from traffic import REFUSED, WRONG, Traffic
from wall_clock import WallClock

# Until a server that can be whole again is. Longer than five workers that die at their start.
HEAL_S = 60.0
# Until somebody notices.
NOTICE_S = 30.0
# Of one question that asks whether a model is well.
WELL_S = 5.0
# A request that nobody answers by then is over. Longer than the server's own hiccups on a machine with other work to do.
DEADLINE_MS = 2_000
LANES = 2
# What a server may always say: that it has no room, or that it is too late. Each is an answer, and counted.
TURNED_AWAY = {503, 504}

Seen = Callable[[], bool]


@dataclass
class Outcome:
    """What became of one injection."""

    kind: str
    seed: int
    clients: int = 0
    # How often clients got which status; `refused`, `wrong`, and the names of errors for requests that were never answered.
    answers: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    # Accepted and never answered: in flight on a worker that was killed, and all others.
    lost_with_worker: int = 0
    lost: int = 0
    refused: int = 0
    # Workers that ended and were replaced; containers that ended or would have been.
    worker_deaths: int = 0
    restarts: int = 0
    # Times that traffic would have been sent elsewhere.
    ready_false: int = 0
    # Seconds from the fault to what shows that it was noticed; from the end of the fault until the server was whole.
    detected_s: float | None = None
    healed_s: float | None = None
    took_s: float = 0.0
    commit: str = ""
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it is written to a file."""
        return asdict(self)


class Scene:
    """What a kind works with, and what it tells of what it expects."""

    def __init__(self, kind: Kind, seed: int, folder: Path) -> None:
        self.dice = random.Random(f"{kind.name}:{seed}")
        self.folder = folder
        self.models = folder / "models"
        for model in RANGES:
            shutil.copytree(SHIPPED_MODELS / model, self.models / model)
        self.config: dict[str, dict[str, Any]] = {
            "defaults": {"deadline_ms": DEADLINE_MS, "lanes": LANES},
            "lifecycle": {"drain_delay_ms": 300},
        }
        for section, entries in kind.config.items():
            self.config.setdefault(section, {}).update(entries)
        # Where faults of the engine are placed: `by_engine.py`.
        self.rehearsal = Rehearsal(folder / "faults") if kind.rehearsal else None
        self.log: IO[bytes] | int | None = None
        # Of the server's processes.
        self.env: dict[str, str] = {}
        self.clock: WallClock
        # A model that clients leave alone.
        self.unasked: str | None = None
        self.stack = contextlib.ExitStack()
        self.server: Server
        self.traffic: Traffic
        self.kubelet: Kubelet
        self._servers = 0
        self._deaths_before = 0
        # ----- what is expected -----
        # Workers that end; none, unless the kind says so. Whether what they had in flight is lost with them.
        self.deaths = 0
        self.may_lose = False
        # Containers that end.
        self.containers = 0
        # What clients may be told, beside 200 and that they are turned away.
        self.statuses: set[int] = set()
        # Whether nobody may listen for a moment.
        self.may_refuse = False

    # ===== servers =====

    def start(self, http_addr: str = "127.0.0.1:0") -> None:
        """A server, whole, and a kubelet beside it. The next one at the same address takes the place of one that has ended."""
        folder = self.folder / f"server{self._servers}"
        self._servers += 1
        flags = self.rehearsal.flags if self.rehearsal else []

        def started() -> Server | None:
            server = Server(folder, self.models, self.config, self.env, http_addr, flags, self.log)
            with contextlib.suppress(AssertionError):
                return server.wait_started().wait_lanes()
            if server.stop() != IO_ERROR:
                raise AssertionError(f"the server did not start: {server.stderr[-2000:]}")
            return None

        # A worker whose supervisor was killed may still hold the address.
        self.server = wait_until(started, "a server starts", HEAL_S)
        self.kubelet = Kubelet(self.server)

    def replace(self, ended: Callable[[Server], int], expected: int, deaths: int = 0) -> None:
        """Lets the server end, after so many deaths of workers, and starts another at its address, as a kubelet does."""
        address = self.server.http
        self._deaths_before += deaths
        code = ended(self.server)
        assert code == expected, f"it ended with {code}, not {expected}: {self.server.stderr[-2000:]}"
        self.server.stop()
        self.start(address)

    def workers(self) -> int:
        """Workers that the server has started."""
        return self.server.status()["supervisor"]["workers_started"]

    def replaced(self, times: int = 1, may_lose: bool = True) -> Seen:
        """Whether so many workers were replaced, as is expected from now on."""
        self.deaths, self.may_lose = times, may_lose
        return lambda: self.workers() > times

    def incidents(self) -> list[dict[str, Any]]:
        """What `/status` tells."""
        return self.server.status().get("incidents", [])

    # ===== parts of faults =====

    def fault(self, kind: str, model: str | None = None, **fields: Any) -> Fault:
        """Tells the engine to fail."""
        assert self.rehearsal is not None, "the kind has to say so"
        return self.rehearsal.fault(kind, model, **fields)

    def model(self) -> str:
        """One of the models."""
        return self.dice.choice(sorted(RANGES))

    def version(self, model: str) -> Path:
        """The folder of a model's only version."""
        return self.models / model / "1"

    def newer(self, model: str) -> Path:
        """A second version of a model: the same graph in other bytes, so that it is really loaded."""
        folder = self.models / model / "2"
        shutil.copytree(self.version(model), folder)
        graph = onnx.load(folder / "model.onnx")
        graph.doc_string = "the same again"
        onnx.save(graph, folder / "model.onnx")
        write_manifest(folder)
        return folder

    def linger(self, least_s: float, most_s: float) -> None:
        """Goes on for a while."""
        time.sleep(self.dice.uniform(least_s, most_s))

    def question(self, model: str | None = None) -> Question:
        """Something to ask."""
        return self.dice.choice([each for each in questions() if model in (None, each.model)])

    # ===== whether it is whole =====

    def is_whole(self) -> bool:
        """Ready, every lane there, no incident open, and a right answer from every model on a new connection."""
        try:
            if self.server.probe("/ready").status != 200:
                return False
            status = self.server.status()
            if status["supervisor"]["stage"] != "running" or not all("healed_after_ms" in each for each in self.incidents()):
                return False
            serving = [each for model in status["models"] for each in model["versions"] if each["state"] in ("ready", "degraded")]
            names = {model["name"] for model in status["models"]}
            if not names >= RANGES.keys() or any(each["lanes"]["healthy"] < each["lanes"]["wanted"] for each in serving):
                return False
            return all(self.is_well(model) for model in RANGES)
        except (OSError, http.client.HTTPException, NotListed, KeyError, AssertionError):
            return False

    def is_well(self, model: str) -> bool:
        """Whether a model answers rightly. A wrong answer is one to everybody."""
        asked = self.question(model)
        answer = asked.ask(self.server.http, WELL_S)
        if answer.status == 200 and (why := asked.why_wrong(answer)):
            raise Wrong(f"{model} answered wrongly: {why}")
        return answer.status == 200

    def deaths_seen(self) -> int:
        """Workers that ended and were replaced, of all servers."""
        return self._deaths_before + self.workers() - 1


# An address in use.
IO_ERROR = 74


class Wrong(Exception):
    """An answer that nobody may ever get."""


Inject = Callable[[Scene], Seen | None]


@dataclass(frozen=True)
class Kind:
    """One way to harm a server."""

    name: str
    # For the report.
    what: str
    inject: Inject
    config: Mapping[str, Mapping[str, Any]]
    # Whether the engine has to be told to fail.
    rehearsal: bool
    # Whether clients ask on one connection again and again, and how many there may be.
    clients: tuple[int, int]
    # What is done before the server starts.
    prepare: Callable[[Scene], None] | None


KINDS: dict[str, Kind] = {}


def kind(
    config: Mapping[str, Mapping[str, Any]] | None = None,
    rehearsal: bool = False,
    clients: tuple[int, int] = (2, 6),
    prepare: Callable[[Scene], None] | None = None,
) -> Callable[[Inject], Inject]:
    """Adds a kind, called as its function is. The function does the harm, to its end, and may return what shows that the server
    has noticed; its first line says what it does."""

    def add(inject: Inject) -> Inject:
        name = inject.__name__.replace("_", "-")
        what = (inject.__doc__ or "").strip().splitlines()[0].rstrip(".")
        assert name not in KINDS and what, name
        KINDS[name] = Kind(name, what, inject, config or {}, rehearsal, clients, prepare)
        return inject

    return add


# ===== one injection =====


def run(name: str, seed: int, folder: Path) -> Outcome:
    """Does it. Whatever goes wrong is among the outcome's problems."""
    kind = KINDS[name]
    outcome = Outcome(name, seed)
    begun = time.monotonic()
    scene = Scene(kind, seed, folder)
    try:
        with scene.stack:
            if kind.prepare:
                kind.prepare(scene)
            scene.start()
            scene.stack.callback(lambda: scene.server.stop())
            scene.stack.callback(lambda: scene.kubelet.verdict())
            _harm(scene, kind, outcome)
    except Wrong as error:
        outcome.wrong += 1
        outcome.problems.append(str(error))
    except Exception as error:  # noqa: BLE001 - one that fails must not end the campaign
        outcome.problems.append(f"{type(error).__name__}: {error}")
        outcome.problems.append("".join(traceback.format_exception(error)[-3:]))
    outcome.took_s = time.monotonic() - begun
    return outcome


def _harm(scene: Scene, kind: Kind, outcome: Outcome) -> None:
    """The fault under load, and the verdict."""
    outcome.clients = scene.dice.randint(*kind.clients)
    pause_s = scene.dice.uniform(0.01, 0.04)
    asked = [each for each in questions() if each.model != scene.unasked]
    traffic = Traffic(scene.server.http, asked, outcome.clients, pause_s=pause_s, seed=outcome.seed)
    scene.traffic = traffic
    with traffic:
        scene.linger(0.0, 0.5)
        at = time.monotonic()
        try:
            seen = kind.inject(scene)
            over = time.monotonic()
            if seen:
                _wait(scene, seen, "it is noticed", NOTICE_S)
                outcome.detected_s = time.monotonic() - at
            _wait(scene, scene.is_whole, "the server is whole", HEAL_S)
            outcome.healed_s = time.monotonic() - over
            traffic.wait_for_more(10 * outcome.clients)
        finally:
            outcome.worker_deaths = scene.deaths_seen() if scene.server.process.poll() is None else -1
    outcome.answers = {str(what): count for what, count in sorted(traffic.outcomes().items(), key=str)}
    _account(scene, traffic, outcome)
    scene.server.wait_idle()
    verdict = scene.kubelet.verdict()
    outcome.restarts = verdict.restarts + scene.containers
    outcome.ready_false = verdict.ready_false
    if verdict.restarts:
        outcome.problems.append(f"a kubelet would have restarted it: {verdict.failed[:5]}")
    code = scene.server.stop()
    if code != 0:
        outcome.problems.append(f"it ended with {code}")


def _wait(scene: Scene, state: Seen, what: str, patience_s: float) -> None:
    def safely() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, NotListed):
            return state()
        return False

    try:
        scene.server.wait_for(safely, what, patience_s)
    except AssertionError as error:
        tail = "\n".join(scene.server.stderr.splitlines()[-25:])
        raise AssertionError(f"{error}; {_standing(scene)}\n{tail}") from None


def _standing(scene: Scene) -> str:
    with contextlib.suppress(Exception):
        status = scene.server.status()
        ready = scene.server.probe("/ready").text
        return f"ready: {ready}; incidents: {json.dumps(status.get('incidents'))}"
    return "no status"


def _account(scene: Scene, traffic: Traffic, outcome: Outcome) -> None:
    """Who got what, and whether that is as it must be."""
    problems = outcome.problems
    lost = traffic.lost()
    deaths = outcome.worker_deaths
    if scene.may_lose and traffic.lost_by_one() <= deaths:
        outcome.lost_with_worker = len(lost)
    else:
        outcome.lost = len(lost)
    if outcome.lost:
        told = [f"{each.outcome} after {each.took:.3f} s on {each.path}: {each.why}" for each in lost[:5]]
        problems.append(f"{outcome.lost} requests were never answered, with {deaths} workers ended: {told}")
    outcome.wrong += traffic.count(WRONG)
    outcome.refused = traffic.count(REFUSED)
    if outcome.wrong:
        problems.append(f"wrong answers: {[each.why for each in traffic.seen if each.outcome == WRONG][:3]}")
    if outcome.refused and not scene.may_refuse:
        problems.append(f"{outcome.refused} connections were refused")
    if deaths != scene.deaths:
        problems.append(f"{deaths} workers ended, not {scene.deaths}")
    allowed = {200} | TURNED_AWAY | scene.statuses
    for each in traffic.seen:
        if isinstance(each.outcome, int) and each.outcome not in allowed:
            problems.append(f"{each.outcome} on {each.path}: {each.why}")
            break


def terminated(server: Server) -> int:
    """Ends a server as Kubernetes does."""
    server.process.send_signal(signal.SIGTERM)
    return server.wait_ended()


