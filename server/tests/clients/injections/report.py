"""What came of injections: a line for each, a table of the kinds, a page."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from injections.scene import KINDS, Outcome

HEAD = ["kind", "what is done", "runs", "workers replaced", "restarts", "answers", "of them 200", "wrong", "lost with a worker",
        "lost", "noticed after, median · most", "whole after, median · most", "not as promised"]  # fmt: skip


def line(outcome: Outcome) -> str:
    """One injection, with what it takes to do it again."""
    name = f"BALM_INJECTION={outcome.kind}:{outcome.seed}"
    whole = "never whole" if outcome.healed_s is None else f"whole after {outcome.healed_s:.2f} s"
    seen = "" if outcome.detected_s is None else f"noticed after {outcome.detected_s:.2f} s, "
    lost = f", {outcome.lost_with_worker} lost with a worker" if outcome.lost_with_worker else ""
    told = f"{name:<46} {seen}{whole}; {_answers(outcome)} answers{lost}"
    return "\n".join([told, *(f"        NOT AS PROMISED: {problem}" for problem in outcome.problems)])


def _answers(outcome: Outcome) -> int:
    return sum(count for what, count in outcome.answers.items() if what.isdigit())


def _times(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f} · {max(known):.2f} s" if known else "–"


def _row(kind: str, outcomes: Sequence[Outcome]) -> list[str]:
    def total(of: str) -> int:
        return sum(getattr(each, of) for each in outcomes)

    return [
        f"`{kind}`",
        KINDS[kind].what if kind in KINDS else "",
        str(len(outcomes)),
        str(total("worker_deaths")),
        str(total("restarts")),
        f"{sum(map(_answers, outcomes)):,}",
        f"{sum(each.answers.get('200', 0) for each in outcomes):,}",
        str(total("wrong")),
        str(total("lost_with_worker")),
        str(total("lost")),
        _times(each.detected_s for each in outcomes),
        _times(each.healed_s for each in outcomes),
        str(sum(bool(each.problems) for each in outcomes)),
    ]


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.kind].append(outcome)
    return dict(sorted(found.items()))


def summary(outcomes: Sequence[Outcome]) -> str:
    """All of them in one sentence, and those that went wrong."""
    if not outcomes:
        return "nothing was injected"
    bad = [each for each in outcomes if each.problems]
    sentence = (
        f"{len(outcomes)} injections of {len(_by_kind(outcomes))} kinds: {sum(each.wrong for each in outcomes)} wrong answers in "
        f"{sum(map(_answers, outcomes)):,}, {sum(each.lost for each in outcomes)} accepted requests without an answer, but for "
        f"{sum(each.lost_with_worker for each in outcomes)} in flight on workers that were killed "
        f"({sum(max(0, each.worker_deaths) for each in outcomes)} were replaced), "
        f"{sum(each.restarts for each in outcomes)} restarts by a kubelet; whole again after "
        f"{_times(each.healed_s for each in outcomes)} (median · most); {len(bad)} not as promised."
    )
    return "\n".join([sentence, *(f"BALM_INJECTION={each.kind}:{each.seed}" for each in bad)])


PAGE = """# Injections

{summary}

`make injections` puts each kind of fault, with many seeds, into a real server with the models that come with Balm, under clients
that ask all of them all the time and know the right answers, and beside a simulated kubelet that asks `/live` and `/ready` five
times a second and counts three failures in a row. The seed decides when, which model, how many clients and for how long;
`BALM_INJECTION=kind:seed make injections` does one again.

How to read it:

- **answers** are complete answers to the clients that ask all the time; every 200 is compared with what `onnxruntime` answers.
  What is not 200 is a readable refusal (503, 504) or, where a run was told to fail, its 500.
- **lost with a worker**: requests that were in flight on a worker when it was killed, at most one for each client and death.
  **lost**: all others that were taken and never answered. It must be 0, and so must **wrong**.
- **restarts**: containers that ended by themselves or that the kubelet would have restarted. Only the kinds that end the whole
  container have any.
- **whole** is: ready, every lane there, no incident open, a right answer from each model on a new connection. It is counted from
  the end of the fault, where the fault lasts, else from the fault.
- **noticed**: until the server's own account shows it, from the fault on.
- Wrong answers of a session are injected only where they must be caught before anybody gets one: at a load, and in a model that no
  client asks meanwhile. In lanes that clients ask they reach clients until a canary finds them, which is said in
  [failure-modes.md](../failure-modes.md#not-handled-yet) and is not tried here.

Of {commits}; {cores} cores, shared by {at_once} servers at once, their clients, and whatever else the machine had to do.

{table}
"""


def page(outcomes: Sequence[Outcome], at_once: int) -> str:
    """The page for people."""
    rows = [HEAD, ["---"] * len(HEAD), *(_row(kind, of) for kind, of in _by_kind(outcomes).items())]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    commits = sorted({each.commit for each in outcomes if each.commit})
    return PAGE.format(
        summary=summary(outcomes),
        table=table,
        commits=("commit " if len(commits) == 1 else "commits ") + ", ".join(commits),
        cores=len(os.sched_getaffinity(0)),
        at_once=at_once,
    )
