"""Print the boxes in an image: python onnx_detect.py DETECTOR.onnx IMAGE [THRESHOLD]; needs DETECTOR.onnx.json too."""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def detect(network: str, image: np.ndarray, least: float = 0, top: int = 100) -> list[tuple[str, float, list[float]]]:
    """(class, score, [x1, y1, x2, y2] in the image's pixels) of the `top` peaks, best first; image (h, w, 3) as cv2 reads."""
    with open(network + ".json") as file:
        about = json.load(file)
    (batch, _, *size), takes = about["input"]["shape"], about["input"]
    zoom = min(inside / side for inside, side in zip(size, image.shape))  # the whole image, centered on black
    shift = [size[1] / 2 - zoom * image.shape[1] / 2, size[0] / 2 - zoom * image.shape[0] / 2]
    x = cv2.warpAffine(image, np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]), size[::-1]).astype(np.float32)
    if takes.get("normalized_by_user", takes.get("normalised_by_user")):  # the second is the key of older exports
        x = (x / 255 - np.float32(takes["mean"])) / np.float32(takes["std"])
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"image": np.repeat(x.transpose(2, 0, 1)[None], batch, 0)})
    heat, offset, extent = (output[0] for output in outputs)  # heatmap, offset and size
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(heat, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    peaks = np.where(heat == windows.max((3, 4)), heat, 0).ravel()  # the largest of 3x3 neighbors in their class
    order = np.argsort(-peaks, kind="stable")[:top]
    label, y, x = np.unravel_index(order, heat.shape)
    center, half = np.stack([x, y]) + offset[:, y, x], np.abs(extent[:, y, x]) / 2
    boxes = (np.concatenate([center - half, center + half]).T * about["stride"] - shift * 2) / zoom
    return [(about["classes"][c], float(peaks[i]), box.tolist()) for c, i, box in zip(label, order, boxes) if peaks[i] >= least]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    cv2.setLogLevel(2)  # errors: one sentence of ours is enough
    if (image := cv2.imread(sys.argv[2])) is None:
        sys.exit(f"error: OpenCV cannot read {sys.argv[2]} as an image")
    for name, score, box in detect(sys.argv[1], image, float([*sys.argv, 0.3][3])):
        print(name, f"{score:.2f}", *(f"{side:.1f}" for side in box))
