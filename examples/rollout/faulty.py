"""A version with a defect that its author did not see: it fails for one picture in five, those with much ink."""

from __future__ import annotations

import penstock


@penstock.model(inputs={"image": "f4[n, 64]"}, outputs={"label": "i8[n]"})
def digits(image):
    if float(image.sum(axis=1).max()) > 340:
        raise ValueError("ink overflow")
    return {"label": image.reshape(-1, 8, 8).sum(axis=(1, 2)).astype("i8") % 10}
