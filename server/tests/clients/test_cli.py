"""The command line and the configuration: every mistake is told, and the exit code says whose it is."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server
from tensors import json_input

USAGE, INTEGRITY, LIBRARY, IO = 64, 65, 69, 74
START = Callable[..., Server]


def config(folder: Path, text: str) -> Path:
    """A configuration file."""
    file = folder / "balm.toml"
    file.write_text(text)
    return file


# ===== usage =====


def test_version_names_the_program_and_the_runtime_it_was_made_for() -> None:
    result = harness.run("--version")
    assert result.returncode == 0, result
    assert re.match(r"balm \d+\.\d+\.\d+", result.stdout)
    assert "ONNX Runtime 1.31.1" in result.stdout


def test_help_lists_the_commands() -> None:
    result = harness.run("--help")
    assert result.returncode == 0
    for command in ("serve", "check", "manifest"):
        assert command in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["sreve"], ["serve", "--htp-addr", "x"], ["serve", "models"], ["manifest"], ["check", "a", "b"]],
    ids=lambda arguments: "_".join(arguments) or "nothing",
)
def test_bad_usage_is_64_and_says_what_is_right(arguments: list[str]) -> None:
    result = harness.run(*arguments)
    assert result.returncode == USAGE, result
    assert "Usage: balm" in result.stderr


# ===== configuration =====

MANY_MISTAKES = """\
verbose = true
[http]
adr = "127.0.0.1:1"
threads = 0
[admission]
max_in_flight = "many"
[log]
level = "inf"
[jobs]
store = "x"
"""


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_mistake_in_the_configuration_is_told_at_once(tmp_path: Path, command: str) -> None:
    file = config(tmp_path, MANY_MISTAKES)
    result = harness.run(command, "--config", file, env={"BALM_DEFAULTS_LANES": "0", "BALM_HTTP_PORT": "8000"})
    assert result.returncode == USAGE, result
    for mistake in (
        "verbose",
        "did you mean http.addr",
        "http.threads = 0",
        "admission.max_in_flight",
        "log.level",
        "jobs.store",
        "BALM_DEFAULTS_LANES",
        "BALM_HTTP_PORT",
    ):
        assert mistake in result.stderr, mistake
    for line in (1, 3, 4, 6, 8, 10):
        assert f"line {line})" in result.stderr, f"line {line} is not named:\n{result.stderr}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[http]\nunknown = 1\n", "http.unknown"),
        ("[unknown]\n", "unknown"),
        ("[http\n", "line 1"),
        ("[http]\nthreads = 1\nthreads = 2\n", "line 3"),
        ("[repository]\nintegrity = 'signed'\n", "off, digest, required"),
        ("[repository]\nreadiness = 7\n", "all"),
        ("[http]\naddr = 'nowhere'\n", "address:port"),
        ("[http]\naddr = '127.0.0.1:8002'\n", "management.addr"),
        ("[defaults]\nproviders = ['gpu']\n", "cuda"),
        ("[defaults]\ndeadline_ms = 5000\nmax_deadline_ms = 4000\n", "at most defaults.max_deadline_ms"),
        ("[admission]\nmax_bytes_in_flight = 1000\n", "at least http.max_body_bytes"),
        ("[lifecycle]\ndrain_delay_ms = -1\n", "lifecycle.drain_delay_ms"),
        ("[log]\nformat = 'xml'\n", "text, json"),
    ],
)
def test_a_bad_value_is_64_and_names_key_and_what_would_be_right(tmp_path: Path, text: str, says: str) -> None:
    result = harness.run("serve", "--config", config(tmp_path, text))
    assert result.returncode == USAGE, result
    assert says in result.stderr
    assert "panic" not in result.stderr


def test_a_configuration_file_that_is_not_there_is_64(tmp_path: Path) -> None:
    result = harness.run("serve", "--config", tmp_path / "nowhere.toml")
    assert result.returncode == USAGE, result
    assert "nowhere.toml" in result.stderr


def test_flags_outweigh_variables_which_outweigh_the_file(tmp_path: Path) -> None:
    file = config(tmp_path, "[defaults]\nlanes = 3\nthreads = 1\n[http]\nthreads = 3\n[log]\nlevel = 'warn'\n")
    env = {"BALM_HTTP_THREADS": "2", "BALM_REPOSITORY_PATH": "/nowhere"}
    result = harness.run("check", harness.SHIPPED_MODELS, "--config", file, env=env)
    assert result.returncode == 0, result
    table = {line.split()[0]: line for line in result.stdout.splitlines() if re.match(r"[a-z]+\.[a-z_]+ ", line)}
    for key, value, origin in [
        ("defaults.lanes", "3", "balm.toml line 2"),
        ("http.threads", "2", "environment BALM_HTTP_THREADS"),
        ("repository.path", str(harness.SHIPPED_MODELS), "flag DIR"),
        ("lifecycle.drain_delay_ms", "5000", "default"),
    ]:
        assert table[key].split()[1] == value and origin in table[key], table[key]


def test_what_kubernetes_sets_for_a_service_is_no_mistake() -> None:
    env = {"BALM_PORT": "tcp://10.0.0.1:8000", "BALM_SERVICE_HOST": "10.0.0.1", "BALM_PORT_8000_TCP_ADDR": "10.0.0.1"}
    assert harness.run("check", harness.SHIPPED_MODELS, env=env).returncode == 0


@pytest.mark.parametrize(("connections", "told"), [("500", False), ("501", True)])
def test_more_connections_than_open_files_leave_room_for_are_told(connections: str, told: bool) -> None:
    command = ["sh", "-c", 'ulimit -n 1000 && exec "$@"', "sh", str(harness.binary()), "check", str(harness.SHIPPED_MODELS)]
    env = harness.environment({"BALM_HTTP_MAX_CONNECTIONS": connections})
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=harness.ROOT, env=env)
    assert result.returncode == 0, result
    assert ("http.max_connections = 501 does not fit into 1000 open files" in result.stdout) == told


def test_the_limit_of_open_files_is_raised(start: START) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard and soft > 4096:
        # What a child inherits can be lowered here and be raised there.
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        server = start(harness.SHIPPED_MODELS).wait_started()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] == hard


def test_threads_and_cores_are_told(start: START, repository: Repository) -> None:
    repository.add("wide", onnx_models.plus(1), settings="lanes = 3\n[session]\nthreads = 2\n")
    server = start(repository.path, {"http": {"threads": 2}}).wait_started()
    metrics = server.metrics()
    assert 1 <= metrics.one("balm_cores") <= len(os.sched_getaffinity(0)), "a quota may lower it"
    assert metrics.one("balm_http_threads") == 2
    assert metrics.one("balm_model_lanes", model="wide", kind="wanted") == 3
    assert metrics.one("balm_model_lane_threads", model="wide", version="1") == 2
    assert " cores=" in server.stderr and " http_threads=2" in server.stderr


def test_settings_of_a_model_are_used(start: START, repository: Repository) -> None:
    repository.add(
        "wide", onnx_models.plus(1), settings="lanes = 3\n[session]\nthreads = 2\n[limits]\nmax_batch_rows = 2\n"
    )
    server = start(repository.path).wait_started()
    server.wait_for(lambda: server.version("wide")["lanes"] == {"wanted": 3, "healthy": 3}, "three lanes")
    assert server.version("wide")["threads"] == 2
    assert server.infer("wide", json_input("x", "FP32", np.zeros(2, np.float32))).status == 200
    answer = server.infer("wide", json_input("x", "FP32", np.zeros(3, np.float32)))
    assert answer.status == 400 and "3 rows" in answer.error and "2" in answer.error


# ===== what is not there =====


def test_a_library_that_is_not_there_is_one_sentence_and_69(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "libonnxruntime.so")
    for command in (["serve", "--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0"], ["check"]):
        result = harness.run(
            *command, env={"ORT_DYLIB_PATH": nowhere, "BALM_REPOSITORY_PATH": str(harness.SHIPPED_MODELS)}
        )
        assert result.returncode == LIBRARY, result
        (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("balm:")]
        assert "ONNX Runtime" in sentence and nowhere in sentence and "make ort" in sentence
        assert "panic" not in result.stderr


def test_a_file_that_is_no_library_is_69(tmp_path: Path) -> None:
    fake = tmp_path / "libonnxruntime.so"
    fake.write_text("no library")
    result = harness.run("check", harness.SHIPPED_MODELS, env={"ORT_DYLIB_PATH": str(fake)})
    assert result.returncode == LIBRARY, result
    assert str(fake) in result.stderr and "panic" not in result.stderr


def test_a_library_that_is_another_one_is_69() -> None:
    other = next(
        (
            path
            for path in (
                Path("/lib/x86_64-linux-gnu/libz.so.1"),
                Path("/lib/x86_64-linux-gnu/libm.so.6"),
                Path("/lib/aarch64-linux-gnu/libm.so.6"),
            )
            if path.exists()
        ),
        None,
    )
    if other is None:
        pytest.skip("no other library found to offer")
    result = harness.run("check", harness.SHIPPED_MODELS, env={"ORT_DYLIB_PATH": str(other)})
    assert result.returncode == LIBRARY, result
    assert str(other) in result.stderr and "panic" not in result.stderr


def test_a_repository_that_is_not_there_is_74(tmp_path: Path) -> None:
    ports = ["--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0"]
    result = harness.run("serve", "--models", tmp_path / "nowhere", *ports)
    assert result.returncode == IO, result
    assert "nowhere" in result.stderr
    result = harness.run("check", tmp_path / "nowhere")
    assert result.returncode == IO, result
    assert "nowhere" in result.stderr


@pytest.mark.parametrize("flag", ["--http-addr", "--management-addr"])
def test_an_address_in_use_is_74_and_names_it(flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        addresses = {"--http-addr": "127.0.0.1:0", "--management-addr": "127.0.0.1:0"} | {flag: address}
        flags = [part for pair in addresses.items() for part in pair]
        result = harness.run("serve", "--models", harness.SHIPPED_MODELS, *flags)
    assert result.returncode == IO, result
    assert address in result.stderr
    assert flag.strip("-").replace("-", ".") in result.stderr


def test_an_address_that_is_not_ours_is_74() -> None:
    result = harness.run(
        "serve", "--models", harness.SHIPPED_MODELS, "--http-addr", "192.0.2.1:1", "--management-addr", "127.0.0.1:0"
    )
    assert result.returncode == IO, result
    assert "192.0.2.1:1" in result.stderr


# ===== check =====


def test_check_prints_what_will_be_used(tmp_path: Path) -> None:
    result = harness.run("check", harness.SHIPPED_MODELS)
    assert result.returncode == 0, result
    for key in ("repository.path", "http.addr", "management.addr", "admission.max_in_flight", "defaults.deadline_ms"):
        assert key in result.stdout
    for model in ("iris", "digits", "breast_cancer"):
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(model)]
        assert "ready" in line and "cpu" in line


def test_check_ends_the_same_way_every_time() -> None:
    """Lanes that are still being built must not be caught in the middle of it by the end of the process."""
    codes = [
        harness.run("check", harness.SHIPPED_MODELS, env={"BALM_DEFAULTS_LANES": "32"}).returncode for _ in range(25)
    ]
    assert set(codes) == {0}, codes


def test_check_of_an_empty_repository_fails(tmp_path: Path) -> None:
    result = harness.run("check", tmp_path)
    assert result.returncode == INTEGRITY, result
    assert "no model" in result.stderr


def test_check_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(harness.SHIPPED_MODELS, copy)

    def files() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in copy.rglob("*")}

    before = files()
    assert harness.run("check", copy).returncode == 0
    assert files() == before


def test_the_repository_may_be_read_only(tmp_path: Path, start: START) -> None:
    copy = tmp_path / "models"
    shutil.copytree(harness.SHIPPED_MODELS, copy)
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert start(copy).wait_started().probe("/ready").status == 200
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_manifest_that_cannot_be_written_is_74(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = Repository(tmp_path / "models").add("plus", onnx_models.plus(1), manifest=False)
    folder.chmod(0o555)
    try:
        assert harness.run("manifest", folder).returncode == IO
    finally:
        folder.chmod(0o755)
