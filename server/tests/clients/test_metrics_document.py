"""`docs/metrics.md` says of each metric what the running server says of it: name, type, labels, help.

To write the file anew after a change: `BALM_WRITE_DOCS=1 make test`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from harness import SHIPPED_MODELS, Server
from tensors import json_input

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"

HEAD = """# Metrics

`GET /metrics` on the management port (8002), Prometheus text format. A test compares this page with what a running
server says; `BALM_WRITE_DOCS=1 make test` writes it anew.

Labels are bounded: `model` and `version` are names of the repository, `route` is a template such as
`/v2/models/{model}/infer`, `status` is a status that Balm sends, and all others are words out of the code. Nothing that
a client sends becomes a label. Durations are in seconds, but for Triton's names, which count microseconds.

`balm_worker_*`, `balm_parked` and `balm_reaped_processes_total` are the supervisor's and are not there with
`lifecycle.single_process`. All else is the worker's and begins anew with each worker; when it does not answer within 250 ms a
scrape has the supervisor's part alone, and `balm_worker_scrape_failures_total` says so.

"""

GROUPS = (
    ("Serving", "balm_"),
    ("Triton's names, with `management.triton_metrics = true`", "nv_"),
    ("The process", "process_"),
)


def families(text: str) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Name to type, help and labels, out of the text format."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    found = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        suffix = "(?:_bucket|_sum|_count)" if kind == "histogram" else ""
        samples = re.findall(rf"^{name}{suffix}(?:\{{(.*)\}})? \S+$", text, re.M)
        labels: set[str] = set()
        for sample in samples:
            labels |= set(re.findall(r'(\w+)="', sample))
        found[name] = (kind, helps[name], tuple(sorted(labels - {"le"})))
    return found


def render(found: dict[str, tuple[str, str, tuple[str, ...]]]) -> str:
    """The page."""
    parts = [HEAD]
    for title, prefix in GROUPS:
        parts.append(f"## {title}\n\n| name | type | labels | what it says |\n|---|---|---|---|\n")
        for name, (kind, text, labels) in sorted(found.items()):
            if name.startswith(prefix):
                parts.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def test_the_page_and_the_server_agree(tmp_path: Path) -> None:
    server = Server(tmp_path, SHIPPED_MODELS, {"management": {"triton_metrics": True}})
    try:
        server.wait_started()
        row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
        assert server.infer("iris", json_input("features", "FP32", row)).status == 200
        found = families(server.probe("/metrics").text)
    finally:
        server.stop()
    # Every family has a home on the page, and there are as many as were counted by hand once, or more.
    assert all(name.startswith(tuple(prefix for _, prefix in GROUPS)) for name in found), sorted(found)
    assert len(found) >= 35, sorted(found)
    page = render(found)
    if os.environ.get("BALM_WRITE_DOCS"):
        DOCUMENT.write_text(page, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == page
