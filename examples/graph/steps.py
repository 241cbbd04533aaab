"""The small steps of `careful.yaml`. Images are rows of 8 x 8 grey values from 0 to 16, as the digits network takes."""

import numpy as np

import penstock

IMAGE = {"image": "f4[n, 64]"}


@penstock.model(inputs={"picture": "u1[n, 64]"}, outputs=IMAGE)
def scale(picture):
    """Grey values from 0 to 255 as the network wants them."""
    return {"image": picture.astype(np.float32) * np.float32(16 / 255)}


@penstock.model(inputs=IMAGE, outputs=IMAGE)
def shift_left(image):
    return {"image": _moved(image, -1)}


@penstock.model(inputs=IMAGE, outputs=IMAGE)
def shift_right(image):
    return {"image": _moved(image, 1)}


@penstock.model(inputs={"probabilities": "f4[n, 10]"}, outputs={"label": "i8[n]"})
def pick(probabilities):
    return {"label": probabilities.argmax(axis=1)}


def _moved(image, columns):
    """The picture moved sideways; what comes in at the edge is empty."""
    pictures = image.reshape(-1, 8, 8)
    moved = np.zeros_like(pictures)
    if columns < 0:
        moved[:, :, :columns] = pictures[:, :, -columns:]
    else:
        moved[:, :, columns:] = pictures[:, :, :-columns]
    return moved.reshape(-1, 64)
