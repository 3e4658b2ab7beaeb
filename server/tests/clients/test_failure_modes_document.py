"""`docs/failure-modes.md` and `docs/runbook.md` say nothing that the sources do not: tests, metrics, labels and reasons.

No server is started. A row without a test is an error, and so is a test of faults that no row names: whoever teaches Balm to
survive something new writes down what becomes of it.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FAILURE_MODES = ROOT / "docs" / "failure-modes.md"
RUNBOOK = ROOT / "docs" / "runbook.md"
METRICS = ROOT / "docs" / "metrics.md"
CRATES = ("probes", "inference", "server", "loadtest")

# Tables of faults are those that begin so; the last column names the tests.
HEAD = ["fault", "seen", "done", "the client gets", "probes", "held by"]
# Tables of the runbook whose first column quotes what a server says, with … for what varies.
QUOTES = ["it says", "so", "do"]
# Tests with one of these marks inject faults.
MARKS = {"faults", "overload"}
# Labels that people on call meet: the section that explains them, and the files and enumerations that spell them.
LABELS = {
    "Workers are replaced": [("probes/src/respawn/cause.rs", "Cause")],
    "Lanes hang": [("probes/src/ladder/reason.rs", "Reason"), ("probes/src/ladder.rs", "Rung")],
    "Shedding for long": [("inference/src/admission/shed.rs", "ShedReason")],
    "Connections are refused, reset or closed": [("server/src/http/listen/activity.rs", "Reason")],
    "Requests are late or fail": [("inference/src/metrics.rs", "Outcome")],
}

# The table of alerts, whose second column has their expressions.
ALERTS = ["alert", "when", "how soon", "section"]

# What is said not to be handled yet, and what would be in the sources outside `probes` if it were.
NOT_YET = {
    "Rung L3": r"\bTrouble::ProviderFailed \{ sticky: false\b",
}

REFERENCE = re.compile(r"`([\w/]+\.(?:py|rs))::(\w+)`")
# A crate is called like a metric, but a path goes on behind it.
METRIC = re.compile(r"\b((?:balm|nv|process)_[a-z0-9_]+)\b(?!::)")
RUST_TEST = re.compile(r"#\[(?:tokio::)?test\b[^\]]*\]\s*(?:(?:#\[[^\]]*\]|//[^\n]*)\s*)*(?:async\s+)?fn\s+(\w+)")


# ===== what there is =====


@dataclass(frozen=True)
class Catalogue:
    """Tests by file, and those of them that inject faults into a real server."""

    by_file: dict[str, frozenset[str]]
    marked: frozenset[str]

    def homes(self, file: str, name: str) -> list[str]:
        """Files that a reference may mean: the path ends so, and the test is in it."""
        return [path for path, names in self.by_file.items() if f"/{path}".endswith(f"/{file}") and name in names]


def marks_of(nodes: list[ast.expr]) -> set[str]:
    """The words in decorators, or in the value of `pytestmark`, that are marks of faults."""
    return {part.attr for node in nodes for part in ast.walk(node) if isinstance(part, ast.Attribute)} & MARKS


def python_tests(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The tests of a module, and those that are marked, each by itself or all together."""
    names, marked = set(), set()
    tree = ast.parse(text)
    everywhere = [node for node in tree.body if isinstance(node, ast.Assign)]
    all_marked = any(
        marks_of([node.value])
        for node in everywhere
        if any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            names.add(node.name)
            if all_marked or marks_of(node.decorator_list):
                marked.add(node.name)
    return frozenset(names), frozenset(marked)


def rust_tests(text: str) -> frozenset[str]:
    """The tests of a file, those within `proptest!` too."""
    return frozenset(RUST_TEST.findall(text))


def all_tests() -> Catalogue:
    """The tests of the repository."""
    by_file, marked = {}, set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        names, special = python_tests(path.read_text(encoding="utf-8"))
        by_file[str(path.relative_to(ROOT))] = names
        marked |= special
    for path in sources():
        by_file[str(path.relative_to(ROOT))] = rust_tests(path.read_text(encoding="utf-8"))
    return Catalogue(by_file, frozenset(marked))


def sources() -> Iterator[Path]:
    """Files of Rust."""
    for crate in CRATES:
        for folder in ("src", "tests"):
            yield from sorted((ROOT / crate / folder).rglob("*.rs"))


def metric_names(page: str) -> set[str]:
    """What `docs/metrics.md` has a row for; of histograms the parts, too."""
    names = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.M):
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def labels(file: str, enumeration: str) -> set[str]:
    """The words that `as_str` of an enumeration gives."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return set(re.findall(rf'\b{enumeration}::\w+ => "([a-z0-9_]+)"', text))


# ===== what the pages say =====


def tables(page: str) -> Iterator[tuple[list[str], list[tuple[int, list[str]]]]]:
    """Head and rows of each table, rows with the number of their line."""
    head: list[str] | None = None
    rows: list[tuple[int, list[str]]] = []
    fenced = False
    for number, line in enumerate([*page.splitlines(), ""], 1):
        fenced ^= line.startswith("```")
        if fenced or not line.startswith("|"):
            if head is not None:
                yield head, rows
            head, rows = None, []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if head is None:
            head = cells
        elif not set(line) <= set("|-: "):
            rows.append((number, cells))


def problems_of_rows(page: str, tests: Catalogue) -> list[str]:
    """What is wrong with the table of faults."""
    found = []
    named: set[str] = set()
    count = 0
    for head, rows in tables(page):
        if head != HEAD:
            if "fault" in head:
                found.append(f"a table of faults has the columns {head}, not {HEAD}")
            continue
        for number, cells in rows:
            count += 1
            if len(cells) != len(HEAD) or not all(cells):
                found.append(f"line {number}: not every column is filled: {cells[0]}")
            references = REFERENCE.findall(cells[-1])
            if not references:
                found.append(f"line {number}: no test holds it: {cells[0]}")
            named |= {name for _, name in references}
    if count == 0:
        found.append("there is no table of faults")
    found += [f"no row names {name}, which injects a fault" for name in sorted(tests.marked - named)]
    return found


def problems_of_references(page: str, tests: Catalogue) -> list[str]:
    """References to tests that lead nowhere, or to more than one."""
    found = []
    for file, name in REFERENCE.findall(page):
        homes = tests.homes(file, name)
        if not homes:
            found.append(f"{file}::{name} does not exist")
        elif len(homes) > 1:
            found.append(f"{file}::{name} may be in any of {homes}")
    return found


def problems_of_metrics(page: str, known: set[str]) -> list[str]:
    """Metrics that nobody exports."""
    return [f"{name} is not in docs/metrics.md" for name in sorted(set(METRIC.findall(page)) - known)]


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second rank; nothing where there is none."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return found[1] if found else ""


def problems_of_labels(page: str, expected: dict[str, set[str]]) -> list[str]:
    """Labels of which the section that is there for them says nothing."""
    found = []
    for heading, words in expected.items():
        written = set(re.findall(r"`([a-z0-9_]+)`", section(page, heading)))
        found += [f"{heading!r} says nothing of {word}" for word in sorted(words - written)]
    return found


def problems_of_quotes(page: str, said: str) -> list[str]:
    """Sentences that no server says."""
    found = []
    count = 0
    for head, rows in tables(page):
        if head != QUOTES:
            continue
        for number, cells in rows:
            for quote in re.findall(r"`([^`]+)`", cells[0]) or [""]:
                count += 1
                pieces = [piece.strip() for piece in quote.split("…")]
                if not any(pieces):
                    found.append(f"line {number}: nothing is quoted")
                found += [f"line {number}: nobody says {piece!r}" for piece in pieces if piece and piece not in said]
    return found or ([] if count else ["there is no table of what a server says"])


def problems_of_what_is_missing(page: str, sources: str) -> list[str]:
    """What a page calls missing although it is there."""
    missing = section(page, "Not handled yet")
    return [
        f"{words!r} are said not to be handled, but the sources have {pattern}"
        for words, pattern in NOT_YET.items()
        if f"- **{words}" in missing and re.search(pattern, sources)
    ]


def code_of(cell: str) -> str:
    """The one piece of code in a cell."""
    (code,) = re.findall(r"`([^`]+)`", cell)
    return code


def anchors(page: str) -> set[str]:
    """The names under which the headings of a page can be reached."""
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def problems_of_links(path: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        if not goal.is_file():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(goal.read_text(encoding="utf-8")):
            found.append(f"{target}: no such heading")
    return found


# ===== the pages =====


@pytest.fixture(scope="module")
def tests() -> Catalogue:
    return all_tests()


@pytest.fixture(scope="module")
def failure_modes() -> str:
    return FAILURE_MODES.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runbook() -> str:
    return RUNBOOK.read_text(encoding="utf-8")


def test_the_sources_are_read_whole(tests: Catalogue) -> None:
    """Figures and names that were known by hand once: a reader that finds nothing would find nothing wrong, either."""
    assert len(tests.by_file) > 100 and sum(map(len, tests.by_file.values())) > 400
    assert "test_a_worker_that_is_stopped_is_replaced" in tests.marked, "marked by itself"
    assert "test_those_who_leave_are_not_computed_for" in tests.marked, "marked with its module"
    assert tests.homes("respawn/tests.rs", "one_worker_at_a_time_and_not_too_many"), "within proptest!"
    assert tests.homes("inference/tests/healing.rs", "a_lane_that_heeds_no_cancel_is_replaced"), "of tokio"


def test_every_fault_has_a_test_and_every_test_of_faults_a_row(failure_modes: str, tests: Catalogue) -> None:
    assert problems_of_rows(failure_modes, tests) == []


def test_every_test_that_is_named_exists(failure_modes: str, runbook: str, tests: Catalogue) -> None:
    assert problems_of_references(failure_modes + runbook, tests) == []


def test_every_metric_that_is_named_exists(failure_modes: str, runbook: str) -> None:
    known = metric_names(METRICS.read_text(encoding="utf-8"))
    assert len(known) > 60
    assert problems_of_metrics(failure_modes + runbook, known) == []


def test_the_runbook_knows_every_label_that_an_alert_can_have(runbook: str) -> None:
    spelled = {heading: [labels(*each) for each in enumerations] for heading, enumerations in LABELS.items()}
    assert all(len(words) >= 6 for sets in spelled.values() for words in sets), spelled
    expected = {heading: set().union(*sets) for heading, sets in spelled.items()}
    assert problems_of_labels(runbook, expected) == []


def test_what_the_runbook_quotes_is_what_the_server_says(runbook: str) -> None:
    said = "\n".join(path.read_text(encoding="utf-8") for path in sources() if "/tests" not in str(path))
    # As the compiler joins lines of a string.
    said = re.sub(r"\\\n\s*", "", said)
    assert problems_of_quotes(runbook, said) == []


def test_what_is_said_to_be_missing_is_missing(failure_modes: str) -> None:
    users = [path for path in sources() if path.is_relative_to(ROOT / "inference/src") or path.is_relative_to(ROOT / "server/src")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in users)
    assert problems_of_what_is_missing(failure_modes, text) == []


def test_prometheus_understands_the_alerts(runbook: str, tmp_path: Path) -> None:
    rows = [cells for head, found in tables(runbook) if head == ALERTS for _, cells in found]
    rules = [{"alert": name, "expr": code_of(when)} for name, when, *_ in rows]
    assert len(rules) >= 10
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    # JSON is YAML.
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "balm", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", [FAILURE_MODES, RUNBOOK], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert problems_of_links(page) == []


# ===== the checks themselves =====

SMALL = Catalogue(
    {
        "a/src/one/tests.rs": frozenset({"it_holds"}),
        "b/src/two/tests.rs": frozenset({"it_holds", "it_breaks"}),
        "c/test_it.py": frozenset({"test_it"}),
    },
    frozenset({"test_it"}),
)
GOOD = """
| fault | seen | done | the client gets | probes | held by |
|---|---|---|---|---|---|
| it dies | at once | nothing | 503 | 200 | `one/tests.rs::it_holds`, `test_it.py::test_it` |
| it hangs | later | nothing | 504 | 200 | `two/tests.rs::it_breaks` |
"""


def test_a_good_table_passes() -> None:
    assert problems_of_rows(GOOD, SMALL) == []
    assert problems_of_references(GOOD, SMALL) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("`two/tests.rs::it_breaks`", "a test, one day", "no test holds it: it hangs"),
        ("`two/tests.rs::it_breaks`", "", "not every column is filled: it hangs"),
        ("| later | nothing |", "| later |", "not every column is filled: it hangs"),
        (", `test_it.py::test_it`", "", "no row names test_it"),
        ("| held by |", "| tests |", "a table of faults has the columns"),
        (GOOD, "# Nothing\n", "there is no table of faults"),
        (GOOD, f"```\n{GOOD}\n```\n", "there is no table of faults"),
    ],
)
def test_a_bad_table_is_told(old: str, new: str, says: str) -> None:
    assert old in GOOD
    found = problems_of_rows(GOOD.replace(old, new), SMALL)
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("`one/tests.rs::it_breaks`", "one/tests.rs::it_breaks does not exist"),
        ("`ne/tests.rs::it_holds`", "does not exist"),
        ("`tests.rs::it_holds`", "may be in any of"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told(reference: str, says: str) -> None:
    (problem,) = problems_of_references(f"see {reference}", SMALL)
    assert says in problem


def test_the_real_page_fails_with_any_row_bereft_of_its_tests(failure_modes: str, tests: Catalogue) -> None:
    rows = [(number, cells) for head, found in tables(failure_modes) if head == HEAD for number, cells in found]
    assert len(rows) >= 50
    lines = failure_modes.splitlines()
    for number, cells in rows:
        bereft = [*lines[: number - 1], lines[number - 1].replace(cells[-1], "none"), *lines[number:]]
        found = problems_of_rows("\n".join(bereft), tests)
        assert f"line {number}: no test holds it: {cells[0]}" in found, cells[0]


def test_metrics_labels_and_quotes_that_are_not_there_are_told() -> None:
    known = metric_names("| `balm_a` | gauge | | |\n| `balm_b` | histogram | | |\n")
    good = "`balm_a` of balm_server::app, `balm_b_count`"
    assert problems_of_metrics(good, known) == []
    assert problems_of_metrics("`balm_a_count`, `balm_c`", known) == [
        "balm_a_count is not in docs/metrics.md",
        "balm_c is not in docs/metrics.md",
    ]
    ends = {"Ends": {"hang", "lanes"}}
    assert problems_of_labels("## Ends\n`hang` and `lanes`\n## More\n", ends) == []
    assert problems_of_labels("## Ends\n`hang`, lanes\n## More\n`lanes`", ends) == ["'Ends' says nothing of lanes"]
    page = "| it says | so | do |\n|---|---|---|\n| `it is … and {}` | x | y |\n"
    assert problems_of_quotes(page.format("well"), "it is {state} and well") == []
    assert problems_of_quotes(page.format("ill"), "it is {state} and well") == ["line 3: nobody says 'and ill'"]
    assert problems_of_quotes("", "") == ["there is no table of what a server says"]


@pytest.mark.parametrize(
    "line",
    ["Trouble::ProviderFailed { sticky: false }"],
)
def test_what_was_missing_and_came_is_told(line: str) -> None:
    page = "## Not handled yet\n" + "".join(f"- **{words} and so on.** Some day.\n" for words in NOT_YET)
    assert problems_of_what_is_missing(page, "Reason::VersionHarmful") == []
    (problem,) = problems_of_what_is_missing(page, line)
    assert "are said not to be handled" in problem
    assert problems_of_what_is_missing(page.replace("yet", "at all"), line) == []


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Not handled yet: why?\n")
    page = tmp_path / "page.md"
    good = "# Here\n[a](#here) [b](other.md) [c](other.md#not-handled-yet-why) [d](https://example.org/#x)"
    page.write_text(good)
    assert problems_of_links(page) == []
    page.write_text(good + "[e](#there) [f](absent.md) [g](other.md#here)")
    assert problems_of_links(page) == [
        "#there: no such heading",
        "absent.md: no such file",
        "other.md#here: no such heading",
    ]


def test_tests_are_read_as_their_runners_read_them() -> None:
    rust = '#[test]\nfn one() {}\n#[tokio::test(flavor = "x")]\n// why\nasync fn two() {}\nfn helper() {}\n'
    assert rust_tests(rust + "proptest! {\n    #[test]\n    #[ignore]\n    fn three(x in 0..1) {}\n}") == {
        "one",
        "two",
        "three",
    }
    python = "import pytest\n@pytest.mark.faults\ndef test_a(): ...\nasync def test_b(): ...\ndef helper(): ...\n"
    assert python_tests(python) == ({"test_a", "test_b"}, {"test_a"})
    assert python_tests("pytestmark = pytest.mark.overload\n" + python)[1] == {"test_a", "test_b"}
