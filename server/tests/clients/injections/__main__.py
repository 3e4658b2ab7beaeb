"""`make injections`: see the package. Prints a line for each, writes JSON and a page, and ends with 1 if any was not as promised."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import harness
from injections import campaign, report
from injections.scene import KINDS, Outcome

TARGET = harness.binary().parents[1]
# Fewer are no campaign.
CAMPAIGN = 300


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="injections", description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=sorted(KINDS), metavar="KIND", help="which; all")
    parser.add_argument("--seeds", type=int, default=15, metavar="N", help="how many of each kind (15)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="the first of them (1)")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="how many servers at once (4)")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no more after so long")
    parser.add_argument("--go-on", action="store_true", help="leave out what the JSON has already")
    parser.add_argument("--json", type=Path, default=TARGET / "injections.json", metavar="FILE", help="what came of each")
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"a page for people, of {CAMPAIGN} injections or more")
    return parser.parse_args()


def main() -> int:
    """The exit code: 0 when each went as promised."""
    chosen = arguments()
    unknown = [kind for kind in chosen.kinds if kind not in KINDS]
    if unknown:
        print(f"no such kind: {', '.join(unknown)}; there are {', '.join(sorted(KINDS))}", file=sys.stderr)
        return 64
    replayed = os.environ.get("BALM_INJECTION")
    if replayed:
        kind, _, seed = replayed.partition(":")
        if kind not in KINDS or not seed.isdigit():
            print(f"BALM_INJECTION={replayed} is not KIND:SEED with one of {', '.join(sorted(KINDS))}", file=sys.stderr)
            return 64
        todo = [(kind, int(seed))]
    else:
        todo = campaign.jobs(chosen.kinds, range(chosen.first_seed, chosen.first_seed + chosen.seeds))
    before = campaign.read(chosen.json) if chosen.go_on else []
    there = {(each.kind, each.seed) for each in before}
    todo = [job for job in todo if job not in there]
    outcomes = before

    def tell(outcome: Outcome, number: int, count: int) -> None:
        print(f"[{number:>3}/{count}] {report.line(outcome)}", flush=True)
        outcomes.append(outcome)
        if not replayed:
            campaign.write(chosen.json, outcomes)

    end = time.monotonic() + chosen.minutes * 60 if chosen.minutes else None
    campaign.conduct(todo, chosen.at_once, end, tell)
    outcomes.sort(key=lambda each: (each.kind, each.seed))
    print(report.summary(outcomes))
    if chosen.page and not replayed and len(outcomes) >= CAMPAIGN:
        chosen.page.parent.mkdir(parents=True, exist_ok=True)
        chosen.page.write_text(report.page(outcomes, chosen.at_once))
    return 1 if any(each.problems for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
