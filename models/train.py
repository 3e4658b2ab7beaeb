#!/usr/bin/env python3
"""Trains the three small models of this repository and writes them as ONNX.

    python models/train.py                  # write models/<name>/1/
    python models/train.py --check          # retrain elsewhere and compare with what is committed
    python models/train.py --models-dir D   # write another repository

The data sets ship inside scikit-learn, so nothing is downloaded. Every seed, solver and package version is fixed
(`requirements.txt`), which makes the files reproducible to the byte on one kind of machine. On another kind the last
bit of a weight may differ, because BLAS kernels sum in another order: `--check` then compares predictions instead.
"""

from __future__ import annotations

import os

# One BLAS thread: the order of a parallel sum depends on how many threads share it. This must be said before numpy
# is imported, because OpenBLAS reads it once, when it is loaded.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import skl2onnx  # noqa: E402
from skl2onnx.common.data_types import FloatTensorType  # noqa: E402
from sklearn import datasets  # noqa: E402
from sklearn.ensemble import GradientBoostingClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, StandardScaler  # noqa: E402

import golden  # noqa: E402

SEED = 20240229
HELD_OUT = 0.25
TOLERANCE = 1e-5

# The newest opsets that may be used; the converter writes the lowest that suffice (16 and 1). All are old news to any
# ONNX Runtime in use.
OPSET = {"": 17, "ai.onnx.ml": 3}
IR_VERSION = 8

MODELS_DIR = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """How one model is made, and how good it must be to be written at all."""

    name: str
    load: Callable[..., tuple[np.ndarray, np.ndarray]]
    estimator: Callable[[], Pipeline]
    accuracy_min: float


@dataclass(frozen=True)
class Trained:
    """A model with the data it has never seen."""

    recipe: Recipe
    onnx_bytes: bytes
    held_out: np.ndarray
    truth: np.ndarray
    accuracy: float


RECIPES = (
    Recipe(
        "iris",
        datasets.load_iris,
        # A Newton solver run to a tight tolerance ends in the one optimum whatever the BLAS kernel; lbfgs with its
        # default tolerance stops wherever rounding leads it, and the weights then differ between machines.
        lambda: make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=200)),
        accuracy_min=0.90,
    ),
    Recipe(
        "breast_cancer",
        datasets.load_breast_cancer,
        lambda: make_pipeline(
            GradientBoostingClassifier(n_estimators=150, max_depth=3, subsample=0.8, random_state=SEED)
        ),
        accuracy_min=0.93,
    ),
    Recipe(
        "digits",
        datasets.load_digits,
        lambda: make_pipeline(
            MinMaxScaler(), MLPClassifier((64, 32), alpha=1e-3, tol=1e-5, max_iter=400, random_state=SEED)
        ),
        accuracy_min=0.95,
    ),
)


def train(recipe: Recipe) -> Trained:
    """Fits the estimator, measures it on rows it has not seen, and converts it."""
    # Clients send float32: training on the same rounding keeps a tree's threshold on the same side of a value. The
    # arithmetic stays float64, whose rounding errors vanish when the weights are written as float32; in float32 the
    # network's training takes another path on every kind of BLAS kernel.
    features, labels = recipe.load(return_X_y=True)
    features = features.astype(np.float32).astype(np.float64)
    train_x, test_x, train_y, test_y = train_test_split(
        features, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels
    )
    pipeline = recipe.estimator().fit(train_x, train_y)
    model = to_onnx(recipe.name, pipeline, features.shape[1]).SerializeToString(deterministic=True)
    held_out = test_x.astype(np.float32)
    predicted = golden.run(model, {"features": held_out})["label"]
    accuracy = float(np.mean(predicted == test_y))
    if accuracy < recipe.accuracy_min:
        raise SystemExit(f"{recipe.name}: held-out accuracy {accuracy:.4f} is below {recipe.accuracy_min}")
    disagreements = int(np.sum(predicted != pipeline.predict(test_x)))
    if disagreements:
        raise SystemExit(f"{recipe.name}: the ONNX model and scikit-learn disagree on {disagreements} held-out rows")
    return Trained(recipe, model, held_out, test_y, accuracy)


def to_onnx(name: str, pipeline: Pipeline, width: int) -> onnx.ModelProto:
    """Converts to ONNX with plain tensors, a named batch dimension, and no trace of when or where it was made."""
    model = skl2onnx.convert_sklearn(
        pipeline,
        name=name,
        initial_types=[("features", FloatTensorType([None, width]))],
        target_opset=OPSET,
        # Without this, probabilities come as a sequence of maps, which no tensor protocol can carry.
        options={id(pipeline.steps[-1][1]): {"zipmap": False}},
    )
    classes = len(pipeline.classes_)
    declare(model.graph.input[0], "features", ["N", width])
    declare(model.graph.output[0], "label", ["N"])
    declare(model.graph.output[1], "probabilities", ["N", classes])
    # The converter collects the opsets in a set, whose order changes with every Python process.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "balm models/train.py", "1"
    model.model_version = 1
    model.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model


def declare(value: onnx.ValueInfoProto, name: str, shape: list[int | str]) -> None:
    """Gives an input or output its shape; a name instead of a number is a dimension that may vary."""
    if value.name != name:
        raise SystemExit(f"the converter named a tensor {value.name!r} where {name!r} was expected")
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dims.dim.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))


def golden_cases(trained: Trained) -> list[golden.Case]:
    """Real held-out rows, chosen so that a model that is subtly wrong is likely to show it."""
    rows, truth = trained.held_out, trained.truth
    probabilities = np.sort(golden.run(trained.onnx_bytes, {"features": rows})["probabilities"], axis=1)
    margin = probabilities[:, -1] - probabilities[:, -2]
    # The closest call moves most when a weight does. A margin below 0.02 could flip by rounding alone.
    closest = int(np.argmin(np.where(margin > 0.02, margin, np.inf)))
    one_per_class = [int(np.argmax(truth == label)) for label in np.unique(truth)]
    chosen = {
        "one_row": rows[:1],
        "eight_rows": rows[1:9],
        "one_row_per_class": rows[one_per_class],
        "closest_call": rows[[closest]],
    }
    return [
        golden.record(name, trained.onnx_bytes, {"features": np.ascontiguousarray(batch)}, TOLERANCE)
        for name, batch in chosen.items()
    ]


def write(trained: Trained, models_dir: Path) -> None:
    """Writes one version folder: the model, its golden cases, and the manifest that covers both."""
    folder = models_dir / trained.recipe.name / "1"
    golden.write_version(folder, trained.onnx_bytes, golden_cases(trained))
    print(
        f"{trained.recipe.name}: held-out accuracy {trained.accuracy:.4f} on {len(trained.truth)} rows, "
        f"{len(trained.onnx_bytes):,} bytes, sha256 {golden.sha256(trained.onnx_bytes)[:16]}…"
    )


def check(models_dir: Path) -> bool:
    """Retrains into a temporary folder and says, model by model, whether the committed files can be remade."""
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in RECIPES:
            write(train(recipe), Path(scratch))
            verdict = compare(models_dir / recipe.name / "1", Path(scratch) / recipe.name / "1")
            print(f"{recipe.name}: {verdict}")
            good &= not verdict.startswith("different")
    return good


def compare(committed: Path, remade: Path) -> str:
    """"identical", "equivalent", or "different: why"."""
    problem = golden.verify_manifest(committed)
    if problem:
        return f"different: {problem}"
    if all((committed / file).read_bytes() == (remade / file).read_bytes() for file in golden.VERSION_FILES):
        return "identical"
    problem = golden.replay(committed / "golden.json", (remade / "model.onnx").read_bytes())
    return f"different: {problem}" if problem else "equivalent (other bytes, same answers)"


def main() -> int:
    """Parses the command line; 0 when all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="retrain elsewhere and compare; writes nothing")
    parser.add_argument("--models-dir", type=Path, default=MODELS_DIR, help="the repository to write or check")
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if check(arguments.models_dir) else 1
    for recipe in RECIPES:
        write(train(recipe), arguments.models_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
