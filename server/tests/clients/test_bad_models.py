"""Models that must not be served, each beside good ones: refused with its own reason, and nobody else notices."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server, golden_case, sha256, write_manifest
from tensors import json_input
from wire import Answer

GOOD = onnx_models.plus(1)
OTHER = onnx_models.plus(2)
WEIGHTED, WEIGHTS = onnx_models.external()
X = np.array([1, 2], np.float32)
START = Callable[..., Server]


def flipped(content: bytes, at: int | None = None) -> bytes:
    """The same with one bit turned over."""
    position = len(content) // 2 if at is None else at
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def outside(repository: Repository, name: str, content: bytes) -> Path:
    """A file beside the repository, where nothing of it may lead."""
    folder = repository.path.parent / "outside"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


# ===== one writer for each kind; the name of the function is the name of the model =====


def truncated(repository: Repository, name: str) -> None:
    repository.add(name, GOOD[: len(GOOD) // 2])


def truncated_after_its_manifest(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "model.onnx").write_bytes(GOOD[:-1])


def one_bit_flipped(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "model.onnx").write_bytes(flipped(GOOD))


def one_bit_of_the_weights_flipped(repository: Repository, name: str) -> None:
    folder = repository.add(name, WEIGHTED, files={"weights.bin": WEIGHTS})
    (folder / "weights.bin").write_bytes(flipped(WEIGHTS))


def one_bit_of_the_golden_requests_flipped(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, golden=[golden_case({"x": X}, {"y": X + 1})])
    content = (folder / "golden.json").read_bytes()
    (folder / "golden.json").write_bytes(flipped(content, content.index(b"case")))


def garbage(repository: Repository, name: str) -> None:
    repository.add(name, np.random.default_rng(1).bytes(4096))


def text_instead(repository: Repository, name: str) -> None:
    repository.add(name, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def empty(repository: Repository, name: str) -> None:
    repository.add(name, b"")


def external_data_missing(repository: Repository, name: str) -> None:
    repository.add(name, WEIGHTED)


def external_data_listed_and_missing(repository: Repository, name: str) -> None:
    folder = repository.add(name, WEIGHTED, files={"weights.bin": WEIGHTS})
    (folder / "weights.bin").unlink()


def external_data_missing_without_a_manifest(repository: Repository, name: str) -> None:
    repository.add(name, WEIGHTED, manifest=False)


def external_data_not_listed(repository: Repository, name: str) -> None:
    folder = repository.add(name, WEIGHTED, files={"weights.bin": WEIGHTS}, manifest=False)
    write_manifest(folder, ["model.onnx"])


def external_data_cut_short(repository: Repository, name: str) -> None:
    repository.add(name, WEIGHTED, files={"weights.bin": WEIGHTS[:-4]})


def external_data_beyond_its_file(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external(offset=8)[0], files={"weights.bin": WEIGHTS})


def external_data_of_a_wrong_length(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external(length=12)[0], files={"weights.bin": WEIGHTS})


def external_data_one_folder_up(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external("../weights.bin")[0])
    (repository.path / name / "weights.bin").write_bytes(WEIGHTS)


def external_data_one_folder_up_without_a_manifest(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external("../weights.bin")[0], manifest=False)
    (repository.path / name / "weights.bin").write_bytes(WEIGHTS)


def external_data_up_and_down_again(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external("../1/weights.bin")[0], files={"weights.bin": WEIGHTS}, manifest=False)


def external_data_under_an_absolute_path(repository: Repository, name: str) -> None:
    target = outside(repository, "weights.bin", WEIGHTS)
    repository.add(name, onnx_models.external(str(target))[0], manifest=False)


def external_data_by_a_link_out_of_the_root(repository: Repository, name: str) -> None:
    target = outside(repository, "weights.bin", WEIGHTS)
    folder = repository.add(name, WEIGHTED, manifest=False)
    (folder / "weights.bin").symlink_to(os.path.relpath(target, folder))
    write_manifest(folder)


def external_data_is_a_fifo(repository: Repository, name: str) -> None:
    folder = repository.add(name, WEIGHTED, manifest=False)
    os.mkfifo(folder / "weights.bin")


def external_data_is_a_folder(repository: Repository, name: str) -> None:
    folder = repository.add(name, WEIGHTED, manifest=False)
    (folder / "weights.bin").mkdir()


def external_data_is_the_memory_marker_of_the_runtime(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.external("*/_ORT_MEM_ADDR_/*")[0], manifest=False)


def link_out_of_the_root(repository: Repository, name: str) -> None:
    target = outside(repository, "model.onnx", GOOD)
    folder = repository.add(name, GOOD)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(os.path.relpath(target, folder))


def absolute_link(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "model.onnx").rename(folder / "real.onnx")
    (folder / "model.onnx").symlink_to(folder / "real.onnx")
    write_manifest(folder)


def version_folder_is_a_link_out(repository: Repository, name: str) -> None:
    (repository.path / name).mkdir()
    target = repository.path.parent / "outside" / name
    shutil.copytree(repository.add(f"{name}_source", GOOD).parent, target)
    shutil.rmtree(repository.path / f"{name}_source")
    (repository.path / name / "1").symlink_to(f"../../outside/{name}/1")
    (repository.path / name / "model.toml").write_text("")


def link_in_a_circle(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, manifest=False)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("other.onnx")
    (folder / "other.onnx").symlink_to("model.onnx")


def fifo(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def fifo_without_a_manifest(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, manifest=False)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def manifest_is_a_fifo(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, manifest=False)
    os.mkfifo(folder / "SHA256SUMS")


def settings_are_a_fifo(repository: Repository, name: str) -> None:
    repository.add(name, GOOD)
    os.mkfifo(repository.path / name / "model.toml")


def a_folder_for_a_model(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, manifest=False)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def a_file_for_a_version(repository: Repository, name: str) -> None:
    (repository.path / name).mkdir()
    (repository.path / name / "1").write_bytes(GOOD)
    (repository.path / name / "model.toml").write_text("")


def no_model_file(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, manifest=False)
    (folder / "model.onnx").unlink()


def no_version(repository: Repository, name: str) -> None:
    (repository.path / name).mkdir()
    (repository.path / name / "model.toml").write_text('description = "yet to come"\n')


def file_that_the_manifest_does_not_list(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "surprise.bin").write_bytes(b"surprise")


def manifest_without_the_model(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD, files={"notes.txt": b"notes"}, manifest=False)
    write_manifest(folder, ["notes.txt"])


def manifest_that_is_none(repository: Repository, name: str) -> None:
    folder = repository.add(name, GOOD)
    (folder / "SHA256SUMS").write_text("trust me\n")


def manifest_that_leads_out(repository: Repository, name: str) -> None:
    outside(repository, "model.onnx", GOOD)
    folder = repository.add(name, GOOD)
    with (folder / "SHA256SUMS").open("a") as manifest:
        manifest.write(f"{sha256(GOOD)}  ../../../outside/model.onnx\n")


def opset_too_new(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.identity("FP32", ["n"], opset=99))


def format_too_new(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.identity("FP32", ["n"], ir_version=99))


def output_that_is_no_tensor(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.sequence_output())


def datatype_without_a_name_in_the_protocol(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.float8())


def unknown_operator(repository: Repository, name: str) -> None:
    repository.add(name, onnx_models.unknown_operator())


def wrong_answers(repository: Repository, name: str) -> None:
    repository.add(name, OTHER, golden=[golden_case({"x": X}, {"y": X + 1})])


def golden_requests_for_another_model(repository: Repository, name: str) -> None:
    repository.add(name, GOOD, golden=[golden_case({"z": X}, {"y": X + 1})])


def golden_requests_that_are_no_json(repository: Repository, name: str) -> None:
    repository.add(name, GOOD, files={"golden.json": b"{"}, settings='golden = "golden.json"\n')


def bad_settings(repository: Repository, name: str) -> None:
    repository.add(name, GOOD, settings='lanes = 0\nlames = 2\nproviders = ["gpu"]\n')


def provider_that_is_not_there(repository: Repository, name: str) -> None:
    repository.add(name, GOOD, settings='providers = ["rocm"]\n')


def settings_that_ask_for_less_integrity(repository: Repository, name: str) -> None:
    repository.add(name, GOOD, settings='integrity = "off"\n')


@dataclass(frozen=True)
class Kind:
    """A bad model, and what must be said of it."""

    write: Callable[[Repository, str], None]
    says: tuple[str, ...]
    state: str = "failed"

    @property
    def name(self) -> str:
        """Of the model."""
        return self.write.__name__

    @property
    def has_version(self) -> bool:
        """Whether `/status` has a version to hang the reason on."""
        return self.write not in (a_file_for_a_version, no_version)


KINDS = [
    Kind(truncated, ("model.onnx", "not a valid ONNX file")),
    Kind(truncated_after_its_manifest, ("model.onnx", sha256(GOOD), sha256(GOOD[:-1]))),
    Kind(one_bit_flipped, ("model.onnx", sha256(GOOD), sha256(flipped(GOOD)))),
    Kind(one_bit_of_the_weights_flipped, ("weights.bin", sha256(WEIGHTS), sha256(flipped(WEIGHTS)))),
    Kind(one_bit_of_the_golden_requests_flipped, ("golden.json", "SHA-256")),
    Kind(garbage, ("model.onnx",)),
    Kind(text_instead, ("model.onnx", "not a valid ONNX file")),
    Kind(empty, ("model.onnx", "empty")),
    Kind(external_data_missing, ("weights.bin",)),
    Kind(external_data_listed_and_missing, ("weights.bin", "missing")),
    Kind(external_data_missing_without_a_manifest, ("weights.bin", "missing")),
    Kind(external_data_not_listed, ("weights.bin", "not listed", "SHA256SUMS")),
    Kind(external_data_cut_short, ("weights", "16")),
    Kind(external_data_beyond_its_file, ("weights", "16")),
    Kind(external_data_of_a_wrong_length, ("weights", "12", "16")),
    Kind(external_data_one_folder_up, ("../weights.bin", "'..'")),
    Kind(external_data_one_folder_up_without_a_manifest, ("../weights.bin", "'..'")),
    Kind(external_data_up_and_down_again, ("../1/weights.bin", "'..'")),
    Kind(external_data_under_an_absolute_path, ("outside/weights.bin", "absolute")),
    Kind(external_data_by_a_link_out_of_the_root, ("weights.bin", "leads out")),
    Kind(external_data_is_a_fifo, ("weights.bin", "FIFO")),
    Kind(external_data_is_a_folder, ("weights.bin", "directory")),
    Kind(external_data_is_the_memory_marker_of_the_runtime, ("_ORT_MEM_ADDR_",)),
    Kind(link_out_of_the_root, ("model.onnx", "leads out")),
    Kind(absolute_link, ("model.onnx", "leads out")),
    Kind(version_folder_is_a_link_out, ("leads out",)),
    Kind(link_in_a_circle, ("model.onnx", "symbolic links")),
    Kind(fifo, ("model.onnx", "FIFO")),
    Kind(fifo_without_a_manifest, ("model.onnx", "FIFO")),
    Kind(manifest_is_a_fifo, ("SHA256SUMS", "FIFO")),
    Kind(settings_are_a_fifo, ("model.toml", "FIFO")),
    Kind(a_folder_for_a_model, ("model.onnx", "directory")),
    Kind(a_file_for_a_version, ("version",)),
    Kind(no_model_file, ("model.onnx", "missing")),
    Kind(no_version, ("version",)),
    Kind(file_that_the_manifest_does_not_list, ("surprise.bin", "not listed")),
    Kind(manifest_without_the_model, ("model.onnx", "not listed")),
    Kind(manifest_that_is_none, ("SHA256SUMS", "line 1")),
    Kind(manifest_that_leads_out, ("SHA256SUMS", "line 2", "'..'")),
    Kind(opset_too_new, ("opset", "99")),
    Kind(format_too_new, ("IR version", "99")),
    Kind(output_that_is_no_tensor, ("pieces",)),
    Kind(datatype_without_a_name_in_the_protocol, ('input "x"', "datatypes")),
    Kind(unknown_operator, ("Transmogrify",)),
    Kind(wrong_answers, ("golden", "y"), state="quarantined"),
    Kind(golden_requests_for_another_model, ("golden", "z"), state="quarantined"),
    Kind(golden_requests_that_are_no_json, ("golden",)),
    Kind(bad_settings, ("model.toml", "lanes", "lames", "gpu")),
    Kind(provider_that_is_not_there, ("rocm",)),
    Kind(settings_that_ask_for_less_integrity, ("integrity", "stricter")),
]


def kubernetes(repository: Repository, name: str) -> None:
    """As a ConfigMap or Secret is mounted: every file a link through `..data`, which is a link too."""
    folder = repository.add(name, GOOD, golden=[golden_case({"x": X}, {"y": X + 1})])
    real = folder / "..2026_01_02_03_04_05.678901234"
    real.mkdir()
    for file in [entry for entry in folder.iterdir() if entry.is_file()]:
        file.rename(real / file.name)
        file.symlink_to(f"..data/{file.name}")
    (folder / "..data").symlink_to(real.name)


def shared_weights(repository: Repository, name: str) -> None:
    """A link that stays beneath the root, as caches of models are built."""
    blobs = repository.path / ".blobs"
    blobs.mkdir()
    (blobs / "weights").write_bytes(WEIGHTS)
    folder = repository.add(name, WEIGHTED, manifest=False)
    (folder / "weights.bin").symlink_to("../../.blobs/weights")
    write_manifest(folder)


def write_all(repository: Repository) -> None:
    """Every bad kind, among good ones at either end of the alphabet."""
    repository.add("a_good_one", GOOD, golden=[golden_case({"x": X}, {"y": X + 1})])
    repository.add("z_good_one", WEIGHTED, files={"weights.bin": WEIGHTS})
    repository.add("without_a_manifest", GOOD, manifest=False)
    kubernetes(repository, "kubernetes")
    shared_weights(repository, "shared_weights")
    repository.add("older_goes_on", GOOD, version=1)
    one_bit_flipped_of = repository.add("older_goes_on", OTHER, version=2)
    (one_bit_flipped_of / "model.onnx").write_bytes(flipped(OTHER))
    for kind in KINDS:
        kind.write(repository, kind.name)


@pytest.fixture(scope="module")
def bad_repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Every bad kind beside good ones, for reading."""
    repository = Repository(tmp_path_factory.mktemp("bad") / "models")
    write_all(repository)
    return repository


@pytest.fixture(scope="module")
def server(bad_repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server on all of them."""
    made = Server(tmp_path_factory.mktemp("bad_server"), bad_repository.path, {"defaults": {"lanes": 1, "threads": 1}})
    try:
        yield made.wait_started().wait_settled()
    finally:
        code = made.stop()
    assert code == 0, made.stderr


def plus_one(server: Server, model: str) -> list[float]:
    """What a good model says."""
    return server.infer(model, json_input("x", "FP32", X)).outputs()["y"].tolist()


def reasons_for(answer: Answer, model: str) -> list[str]:
    """The reasons in a readiness answer that speak of the model."""
    return [reason for reason in answer.json["reasons"] if f"'{model}'" in reason]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_bad_model_is_refused_and_every_probe_says_why(server: Server, kind: Kind) -> None:
    ready = server.probe("/ready")
    assert ready.status == 503
    model_ready = server.get(f"/v2/models/{kind.name}/ready")
    assert model_ready.status == 503, model_ready
    prediction = server.infer(kind.name, json_input("x", "FP32", X))
    assert prediction.status == 503, prediction
    (reason,) = reasons_for(ready, kind.name)
    told = {"/ready": reason, "model ready": model_ready.json["error"], "infer": prediction.error}
    if kind.has_version:
        version = server.version(kind.name)
        assert version["state"] == kind.state
        assert version["lanes"]["healthy"] == 0
        told["/status"] = version["reason"]
        entry = server.index()[kind.name, "1"]
        assert entry["state"] == "UNAVAILABLE"
        told["index"] = entry["reason"]
    for where, text in told.items():
        missing = [word for word in kind.says if word not in text]
        assert not missing, f"{where} does not say {missing}: {text}"


def test_the_good_models_beside_them_serve(server: Server) -> None:
    for model in ("a_good_one", "without_a_manifest", "kubernetes"):
        assert plus_one(server, model) == [2, 3], model
    for model in ("z_good_one", "shared_weights"):
        answer = server.infer(model, json_input("x", "FP32", np.zeros((1, 4), np.float32)))
        assert answer.outputs()["y"].tolist() == [[10, 20, 30, 40]], model


def test_every_bad_model_and_no_good_one_stands_in_the_way(server: Server) -> None:
    """Readiness names what keeps it: one reason for each bad model, none for a good one."""
    reasons = server.probe("/ready").json["reasons"]
    assert len(reasons) == len(KINDS), reasons
    assert server.probe("/startup").status == 200, "no restart would mend a bad file"
    assert server.probe("/live").status == 200


def test_the_older_version_goes_on_when_the_newest_is_refused(server: Server) -> None:
    assert plus_one(server, "older_goes_on") == [2, 3]
    assert server.get("/v2/models/older_goes_on/ready").status == 200
    assert server.get("/v2/models/older_goes_on/versions/2/ready").status == 503
    states = {number: server.version("older_goes_on", number) for number in (1, 2)}
    assert (states[1]["state"], states[2]["state"]) == ("ready", "failed")
    assert sha256(OTHER) in states[2]["reason"] and sha256(flipped(OTHER)) in states[2]["reason"]
    (note,) = [note for note in server.probe("/ready").json["notes"] if "older_goes_on" in note]
    assert "serves version 1" in note and sha256(flipped(OTHER)) in note


def test_refusals_are_counted(server: Server) -> None:
    metrics = server.metrics()
    assert metrics.one("balm_integrity_checks_total", model="one_bit_flipped", result="refused") == 1
    assert metrics.one("balm_integrity_checks_total", model="a_good_one", result="verified") == 1
    assert metrics.one("balm_integrity_checks_total", model="without_a_manifest", result="unverified") == 1
    assert metrics.one("balm_model_loads_total", model="one_bit_flipped", version="1", result="failed") == 1
    assert metrics.one("balm_model_state", model="wrong_answers", version="1", state="quarantined") == 1
    assert metrics.one("balm_model_state", model="wrong_answers", version="1", state="ready") == 0


def test_check_names_every_bad_model_and_fails(bad_repository: Repository) -> None:
    result = harness.run("check", bad_repository.path)
    assert result.returncode == 65, result
    told = result.stdout + result.stderr
    for kind in KINDS:
        lines = [line for line in told.splitlines() if kind.name in line]
        assert lines, f"{kind.name} is not named:\n{told}"
    for digest in (sha256(GOOD), sha256(flipped(GOOD))):
        assert digest in told


def test_check_of_the_shipped_models_passes() -> None:
    result = harness.run("check", harness.SHIPPED_MODELS)
    assert result.returncode == 0, result
    for model in ("iris", "digits", "breast_cancer"):
        assert model in result.stdout


# ===== what happens to a model that serves =====


def test_a_byte_changed_on_disk_is_refused_at_load_and_the_loaded_bytes_go_on(
    start: START, repository: Repository
) -> None:
    folder = repository.add("changing", GOOD)
    repository.add("other", GOOD)
    server = start(repository.path).wait_started()
    (folder / "model.onnx").write_bytes(flipped(GOOD))
    answer = server.load("changing")
    assert answer.status == 400, answer
    assert sha256(GOOD) in answer.error and sha256(flipped(GOOD)) in answer.error
    assert plus_one(server, "changing") == [2, 3], "what was verified and loaded still serves"
    assert plus_one(server, "other") == [2, 3]
    assert sha256(flipped(GOOD)) in server.version("changing")["reason"]
    (folder / "model.onnx").write_bytes(GOOD)
    assert server.load("changing").status == 200
    assert "reason" not in server.version("changing")


def test_a_newer_version_is_taken_over_by_load_and_a_bad_one_is_not(start: START, repository: Repository) -> None:
    repository.add("growing", GOOD)
    server = start(repository.path).wait_started()
    repository.add("growing", OTHER, version=2)
    assert server.load("growing").status == 200
    assert plus_one(server, "growing") == [3, 4]
    repository.add("growing", onnx_models.plus(3), version=3, golden=[golden_case({"x": X}, {"y": X})])
    answer = server.load("growing")
    assert plus_one(server, "growing") == [3, 4], answer
    assert server.version("growing", 3)["state"] == "quarantined"
    assert server.probe("/ready").status == 200


def test_required_refuses_a_version_without_a_manifest(start: START, repository: Repository) -> None:
    repository.add("listed", GOOD)
    repository.add("unlisted", GOOD, manifest=False)
    server = start(repository.path, {"repository": {"integrity": "required"}}).wait_started()
    assert plus_one(server, "listed") == [2, 3]
    (reason,) = reasons_for(server.probe("/ready"), "unlisted")
    assert "SHA256SUMS" in reason and "required" in reason


def test_off_serves_what_a_manifest_denies(start: START, repository: Repository) -> None:
    one_bit_flipped(repository, "flipped_weights")
    folder = repository.add("changed", GOOD)
    (folder / "model.onnx").write_bytes(OTHER)
    server = start(repository.path, {"repository": {"integrity": "off"}}).wait_started()
    assert plus_one(server, "changed") == [3, 4]
    assert server.metrics().one("balm_integrity_checks_total", model="changed", result="unverified") == 1


# ===== manifests =====


def test_the_manifest_that_balm_writes_is_what_sha256sum_reads(start: START, repository: Repository) -> None:
    folders = [
        repository.add("plain", GOOD, manifest=False),
        repository.add("plain", OTHER, version=2, manifest=False),
        repository.add("weighted", WEIGHTED, files={"weights.bin": WEIGHTS, "a b.txt": b"x"}, manifest=False),
    ]
    result = harness.run("manifest", repository.path)
    assert result.returncode == 0, result
    for folder in folders:
        check = subprocess.run(
            ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
        )
        assert check.returncode == 0, check
        listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        assert listed == {file.name for file in folder.iterdir()} - {"SHA256SUMS"}
    server = start(repository.path, {"repository": {"integrity": "required"}}).wait_started()
    assert server.probe("/ready").status == 200
    assert plus_one(server, "plain") == [3, 4]


def test_a_manifest_can_be_written_for_one_version_alone(repository: Repository) -> None:
    folder = repository.add("plain", GOOD, manifest=False)
    assert harness.run("manifest", folder).returncode == 0
    assert (folder / "SHA256SUMS").read_text() == f"{sha256(GOOD)}  model.onnx\n"


def test_a_manifest_follows_the_files(repository: Repository) -> None:
    folder = repository.add("plain", GOOD)
    (folder / "model.onnx").write_bytes(OTHER)
    assert harness.run("check", repository.path).returncode == 65
    assert harness.run("manifest", repository.path).returncode == 0
    assert harness.run("check", repository.path).returncode == 0
    assert (folder / "SHA256SUMS").read_text() == f"{sha256(OTHER)}  model.onnx\n"


def test_a_manifest_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert harness.run("manifest", tmp_path / "nowhere").returncode != 0
