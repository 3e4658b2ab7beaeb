"""Golden cases and manifests: what a version folder holds beside its model.

`golden.json` records inputs and the outputs that ONNX Runtime gave for them when the model was made. The server judges
a candidate version by them before it serves; the tests compare every client's answer with them. `SHA256SUMS` is what
`sha256sum -c` reads, run from inside the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

DATATYPES = {"float32": "FP32", "int64": "INT64"}
DTYPES = {oip: numpy for numpy, oip in DATATYPES.items()}

# What a manifest lists, sorted by name, as `sha256sum *` would.
VERSION_FILES = ("golden.json", "model.onnx")

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Inputs, the outputs they must give, and how far an output may be off."""

    name: str
    inputs: Tensors
    outputs: Tensors
    tolerance: float


def session(model: bytes) -> onnxruntime.InferenceSession:
    """A session on one CPU thread, so that sums are made in one order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes, inputs: Tensors) -> Tensors:
    """Every output of the model, by name."""
    engine = session(model)
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, inputs), strict=True))


def record(name: str, model: bytes, inputs: Tensors, tolerance: float) -> Case:
    """A case whose expected outputs are what the model answers now."""
    outputs = run(model, inputs)
    for output, tensor in outputs.items():
        if not np.all(np.isfinite(tensor)):
            raise SystemExit(f"golden case {name!r}: output {output!r} is not finite")
    return Case(name, inputs, outputs, tolerance)


def replay(golden_file: Path, model: bytes) -> str | None:
    """What is wrong with the model's answers to recorded cases, or None. Integers, such as labels, must be equal."""
    for case in read(golden_file):
        answers = run(model, case.inputs)
        for name, expected in case.outputs.items():
            if answers[name].shape != expected.shape:
                return f"case {case.name!r}, output {name!r}: shape {answers[name].shape}, expected {expected.shape}"
            off = float(np.max(np.abs(answers[name].astype(np.float64) - expected.astype(np.float64))))
            if off > (case.tolerance if expected.dtype == np.float32 else 0):
                return f"case {case.name!r}, output {name!r}: off by {off:g}, {case.tolerance:g} is allowed"
    return None


def write_version(folder: Path, model: bytes, cases: list[Case]) -> None:
    """Writes the three files of a version folder, the manifest last: a half-written folder has none that fits."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"golden.json": render(cases).encode(), "model.onnx": model}
    manifest = "".join(f"{sha256(contents[file])}  {file}\n" for file in VERSION_FILES)
    for file, content in [*contents.items(), ("SHA256SUMS", manifest.encode())]:
        temporary = folder / f".{file}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, folder / file)


def verify_manifest(folder: Path) -> str | None:
    """What is wrong with a version folder's files by its own manifest, or None."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {file: digest for digest, file in (line.split("  ", 1) for line in lines)}
        found = {file: sha256((folder / file).read_bytes()) for file in VERSION_FILES}
    except FileNotFoundError as error:
        return f"there is no {Path(error.filename).name}"
    except (OSError, ValueError) as error:
        return f"SHA256SUMS cannot be checked: {error}"
    wrong = [file for file in VERSION_FILES if listed.get(file) != found[file]]
    return f"{', '.join(wrong)}: not what SHA256SUMS says" if wrong else None


def sha256(content: bytes) -> str:
    """The digest as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def read(golden_file: Path) -> list[Case]:
    """The cases of a golden.json."""
    return [
        Case(
            entry["name"],
            {tensor["name"]: _from_json(tensor) for tensor in entry["inputs"]},
            {tensor["name"]: _from_json(tensor) for tensor in entry["outputs"]},
            entry["tolerance"],
        )
        for entry in json.loads(golden_file.read_text())["cases"]
    ]


def render(cases: list[Case]) -> str:
    """JSON with one tensor a line: a diff of it can be read, and a line is something to paste into a request."""
    return '{"cases": [\n' + ",\n".join(_render_case(case) for case in cases) + "\n]}\n"


def _render_case(case: Case) -> str:
    def tensors(of: Tensors) -> str:
        return ",\n".join("    " + json.dumps(_to_json(name, tensor)) for name, tensor in of.items())

    return (
        f'  {{"name": {json.dumps(case.name)}, "tolerance": {json.dumps(case.tolerance)},\n'
        f'   "inputs": [\n{tensors(case.inputs)}],\n   "outputs": [\n{tensors(case.outputs)}]}}'
    )


def _to_json(name: str, tensor: np.ndarray) -> dict[str, object]:
    data = tensor.ravel().tolist() if tensor.dtype != np.float32 else [_shortest(value) for value in tensor.ravel()]
    return {"name": name, "datatype": DATATYPES[tensor.dtype.name], "shape": list(tensor.shape), "data": data}


def _from_json(tensor: dict[str, object]) -> np.ndarray:
    return np.array(tensor["data"], dtype=DTYPES[str(tensor["datatype"])]).reshape(tensor["shape"])


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that is this float32 again when read as a double and then rounded."""
    short = float(np.format_float_scientific(value))
    return short if np.float32(short) == value else float(value)
