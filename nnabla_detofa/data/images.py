"""Reading one image file, and noticing when it is not whole."""

from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""The image files that are looked for, in this order and in either case."""


TAIL = 1 << 16
"""Bytes at the end of an image file, among which the mark of its end is looked for first."""


def check_whole(path: Path) -> None:
    """Find a file that `read_image` would refuse, mostly without reading more than its end.

    Raises:
        UserError: as `read_image`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(max(0, path.stat().st_size - TAIL))
            tail = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    jpeg = head.startswith(b"\xff\xd8") and tail.rfind(b"\xff\xd9") > tail.rfind(b"\xff\xda")
    png = head == b"\x89PNG\r\n\x1a\n" and b"IEND" in tail
    if not (jpeg or png):
        read_image(path)


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, channels in the order blue, green, red.

    OpenCV may fill the missing part of a truncated JPEG with grey and carry on, so the end-of-image marker is looked for:
    it must follow the last start-of-scan marker (neither can occur inside compressed data).

    Raises:
        UserError: the file is missing, truncated or not an image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise UserError(f"{path} is truncated: the JPEG data stop before the end-of-image marker; copy the file again")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"{path} is not a readable image ({len(data)} bytes): JPEG or PNG is expected, and whole")
    return image
