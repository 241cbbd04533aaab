"""Makes the two models of this example and the digits that callers ask about; run it to make them again.

    python examples/rollout/train.py

Model 1 has seen 30 images and reads about four digits of five; model 2 has seen 1,347 and reads nearly all. Both take
`image` FP32 [n, 64] and give `label` INT64 [n]. `digits.json` holds 200 images that neither has seen, with what they
show.
Needs: pip install scikit-learn skl2onnx
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
ASKED = 200


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    train, test, train_digits, test_digits = train_test_split(
        images.astype(np.float32), digits, test_size=0.25, random_state=0
    )
    for version, seen in ((1, 30), (2, len(train))):
        model = LogisticRegression(max_iter=300, C=0.01).fit(train[:seen], train_digits[:seen])
        exported = convert_sklearn(
            model, "digits", [("image", FloatTensorType([None, 64]))],
            options={id(model): {"zipmap": False}}, target_opset={"": 17, "ai.onnx.ml": 3},
        )  # fmt: skip
        path = HERE / "models" / str(version) / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported.SerializeToString())
        print(f"{path.relative_to(HERE)}: {model.score(test, test_digits):.1%} of {len(test)} unseen images right")
    rows = [
        {"image": image.astype(int).tolist(), "digit": int(digit)}
        for image, digit in zip(test[:ASKED], test_digits[:ASKED], strict=True)
    ]
    (HERE / "digits.json").write_text(
        "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n"
    )


if __name__ == "__main__":
    main()
