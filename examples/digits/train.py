"""Trains small models of handwritten digits (scikit-learn's bundled data set) in a few seconds.

    python examples/digits/train.py                   # models/digits/1/model.onnx
    python examples/digits/train.py --all             # and skops, XGBoost, LightGBM and CatBoost models beside it
    python examples/digits/train.py --out elsewhere

The default is a neural network 64 → 64 → 32 → 10. The same script made `model.onnx` beside it.
Needs: pip install scikit-learn skl2onnx (and, for --all, skops xgboost lightgbm catboost).
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

SEED = 0
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data() -> Split:
    """(n, 64) float32 images of 8 x 8 grey values from 0 to 16, and their digits: for training, then for testing."""
    images, digits = load_digits(return_X_y=True)
    train, test, train_digits, test_digits = train_test_split(
        images.astype(np.float32), digits, test_size=0.25, random_state=SEED
    )
    return train, test, train_digits, test_digits


def train_network(images: np.ndarray, digits: np.ndarray) -> MLPClassifier:
    """The network that is shipped."""
    network = MLPClassifier((64, 32), max_iter=60, random_state=SEED)
    # One thread: tiny matrices gain nothing from more, and sums keep their order.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 60 rounds are enough, and it says that more could still improve
        return network.fit(images, digits)


def write_onnx(network: MLPClassifier, path: Path) -> None:
    """Writes the network as ONNX: `image` FP32 [n, 64] → `label` INT64 [n], `probabilities` FP32 [n, 10]."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    model = convert_sklearn(
        network,
        "digits",
        [("image", FloatTensorType([None, 64]))],
        options={id(network): {"zipmap": False}},  # one tensor, not a list of maps
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    labels = model.metadata_props.add()  # Penstock names the classes from this, see docs/adapters/onnx.md
    labels.key, labels.value = "labels.probabilities", json.dumps([str(digit) for digit in network.classes_])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_others(images: np.ndarray, digits: np.ndarray, folder: Path) -> None:
    """Writes a logistic regression as `.skops`, and boosted trees as XGBoost's `.ubj`, LightGBM's `.txt` and CatBoost's
    `.cbm`, each in a folder of numbered versions."""
    import catboost
    import lightgbm
    import skops.io
    import xgboost

    targets = {
        "digits-skops": "model.skops",
        "digits-xgboost": "model.ubj",
        "digits-lightgbm": "model.txt",
        "digits-catboost": "model.cbm",
    }
    paths = {name: folder / name / "1" / file for name, file in targets.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not a forest: skops takes trees only on trust, and these models should serve without.
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(images, digits)
    skops.io.dump(linear, paths["digits-skops"])
    boosted = xgboost.XGBClassifier(n_estimators=30, max_depth=4, n_jobs=1, random_state=SEED).fit(images, digits)
    boosted.save_model(paths["digits-xgboost"])
    light = lightgbm.LGBMClassifier(n_estimators=30, num_leaves=15, n_jobs=1, verbose=-1, random_state=SEED)
    light.fit(images, digits).booster_.save_model(paths["digits-lightgbm"])
    oblivious = catboost.CatBoostClassifier(
        iterations=60, depth=4, thread_count=1, random_seed=SEED, verbose=False, allow_writing_files=False
    )
    oblivious.fit(images, digits).save_model(str(paths["digits-catboost"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train models of handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder of models to write to")
    parser.add_argument("--all", action="store_true", help="also write skops, XGBoost, LightGBM and CatBoost models")
    arguments = parser.parse_args()
    train, test, train_digits, test_digits = data()
    network = train_network(train, train_digits)
    path = arguments.out / "digits" / "1" / "model.onnx"
    write_onnx(network, path)
    print(f"{path}: {network.score(test, test_digits):.1%} of {len(test)} unseen images right")
    if arguments.all:
        write_others(train, train_digits, arguments.out)
        print(f"{arguments.out}/: digits-skops, digits-xgboost, digits-lightgbm, digits-catboost")


if __name__ == "__main__":
    main()
