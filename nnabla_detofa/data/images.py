"""Reading of single image files, with detection of truncated and damaged files."""

import re
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..common.errors import UserError
from ..common.reading import read_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Extensions of image files, in order of preference; upper case matches too."""
OTHER_FORMATS = {".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".jfif", ".jpe", ".jp2", ".ppm", ".pgm"}
"""Extensions of image formats that are not supported."""

MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 26
"""Largest number of pixels of an image. ImageNet's largest image has 51 million; a file of a few bytes may declare billions."""
MAX_SIDE = 32766
"""Largest side of an image in pixels; OpenCV cannot rotate or scale longer ones."""

TAIL = 1 << 16
"""Number of bytes at the beginning of a JPEG file that are searched first for its size and its first scan."""

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
SIZES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers whose segments contain the height and width of the image."""
END, SCAN, START = 0xD9, 0xDA, 0xD8
METADATA = range(0xE0, 0xF0)
"""JPEG markers of metadata, such as Exif."""
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xef\xfe]")
"""JPEG markers that are followed by a segment, and END and START. Compressed data contain none; other bytes are skipped."""

PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""PNG color type -> allowed numbers of bits per channel."""


class ImageHeader(NamedTuple):
    """Properties of an image that are known without decoding it.

    Attributes:
        stored: (height, width) of the stored pixels.
        orientation: value of the Exif tag Orientation that `read_image` applies, 1 to 8; 1 leaves the pixels unchanged.
    """

    stored: tuple[int, int]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image that `read_image` returns."""
        return self.stored[::-1] if self.orientation > 4 else self.stored


def check_whole(path: Path) -> tuple[int, int]:
    """Check that `read_image` would accept a file, usually reading only the first and last bytes of a large JPEG.

    Returns:
        (height, width) of the image that `read_image` returns.

    Raises:
        UserError: the file is missing, truncated, damaged, too large or not an image (see `read_image`).
    """
    return inspect_image(path).size


def inspect_image(path: Path) -> ImageHeader:
    """Check a file like `check_whole` and return its header; all code that examines an image without decoding uses this."""
    if not path.is_file():  # opening a pipe would block
        return ImageHeader(_checked(path)[1])
    try:
        with path.open("rb") as file:
            head = file.read(TAIL)
            file.seek(max(0, path.stat().st_size - 2))
            ended = file.read() == bytes((0xFF, END))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if ended and len(head) == TAIL and head.startswith(JPEG):
        size, scanned, _ = _follow(head)
        if size and scanned and not _misfit(size):
            return ImageHeader(size, _orientation(head))
    data, size = _checked(path)
    if data.startswith(PNG) and not _png_is_filled(data, size):
        raise UserError(f"{path} is damaged: it contains less PNG data than its header declares; copy the file again")
    return ImageHeader(size, _orientation(data))


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, channels in the order blue, green, red.

    Grayscale, palette, transparent and 16-bit images are converted. OpenCV may silently fill the missing part of a truncated
    JPEG with gray, so the segments of the file are followed up to the end-of-image marker; data after it, such as the video
    of a motion photo, are ignored. The checksums of a PNG are verified.

    Raises:
        UserError: the file is missing, truncated, damaged, larger than `MAX_BYTES`, `MAX_PIXELS` or `MAX_SIDE`, or not an
            image.
    """
    data, _ = _checked(path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise _unreadable(path, data)
    return image


def _checked(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return the bytes of an image file and the (height, width) in its header, after checking that the file is complete."""
    data = read_bytes(path, "the image", MAX_BYTES)
    if data.startswith(JPEG):
        size, scanned, ended = _follow(data)
        if size and not ended:
            raise UserError(f"{path} is truncated: the JPEG data stop before the end-of-image marker; copy the file again")
        size = size if scanned else None
    else:
        size = _png_size(data, path) if data.startswith(PNG) else None
    if size is None or 0 in size:
        raise _unreadable(path, data)
    if misfit := _misfit(size):
        raise UserError(f"{path} must have {misfit}, got {size[0]} x {size[1]} (height x width)")
    return data, size


def _misfit(size: tuple[int, int]) -> str:
    """Return the size limit that an image of this (height, width) violates; empty if there is none."""
    if size[0] * size[1] > MAX_PIXELS:
        return f"at most {MAX_PIXELS} pixels"
    return f"sides of at most {MAX_SIDE} pixels" if max(size) > MAX_SIDE else ""


def _png_is_filled(data: bytes, size: tuple[int, int]) -> bool:
    """Return whether a PNG contains enough compressed data for its (height, width); at least one byte if interlaced."""
    depth, color, interlaced = data[24], data[25], data[28]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    left = 1 if interlaced else size[0] * (1 + -(-size[1] * channels * depth // 8))
    unpacker = zlib.decompressobj()
    try:
        for at, length, kind in _chunks(data):
            packed = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            while packed and left > 0:
                left -= len(unpacker.decompress(packed, TAIL))
                packed = unpacker.unconsumed_tail
            if left <= 0:
                break
    except zlib.error:
        return False
    return left <= 0


def _orientation(data: bytes) -> int:
    """Return the Exif orientation (1 to 8) that OpenCV applies to an image, given at least the bytes before its pixels.

    OpenCV decodes a small probe image with the metadata of the file. The orientation is read off the result, so that
    this function does not interpret Exif and ignores everything that OpenCV ignores (XMP, damaged Exif, a second Exif).
    """
    if data.startswith(JPEG):
        metadata = b"".join(data[start:end] for marker, start, end in _segments(data, SCAN) if marker in METADATA)
        if b"\xff\xe1" not in metadata:
            return 1
        probe = JPEG + metadata + _probe(".jpg")[len(JPEG) :]
    else:
        exif = [data[at : at + 12 + length] for at, length, kind in _chunks(data) if kind == b"eXIf"]
        found = [chunk for chunk in exif if chunk[8:10] in (b"II", b"MM")]  # libpng warns about others and ignores them
        if not found:
            return 1
        small = _probe(".png")
        header = len(PNG) + 25
        probe = small[:header] + b"".join(found) + small[header:]
    try:
        decoded = cv2.imdecode(np.frombuffer(probe, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return 1
    if decoded is None:
        return 1
    height, width = decoded.shape[:2]
    corners = [decoded[y, x, 0] for y, x in ((1, 1), (1, width - 2), (height - 2, width - 2), (height - 2, 1))]
    return 1 + int(np.argmax(corners)) + 4 * (height > width)


@lru_cache(maxsize=2)
def _probe(suffix: str) -> bytes:
    """Encode a black image, 32 pixels wide and 16 high, with a white upper left corner."""
    image = np.zeros((16, 32), np.uint8)
    image[:8, :8] = 255
    return cv2.imencode(suffix, image)[1].tobytes()


def _segments(data: bytes, last: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments of a JPEG, up to the first segment with the marker `last`."""
    at = len(JPEG)
    while (found := MARKER.search(data, at)) and data[found.end() - 1] != last:
        marker, at = data[found.end() - 1], found.end()
        if marker not in (START, END):
            at += int.from_bytes(data[at : at + 2], "big")
        yield marker, found.start(), at


def _chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, data length and type of each chunk of a PNG."""
    at = len(PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield at, length, data[at + 4 : at + 8]
        at += 12 + length


def _unreadable(path: Path, data: bytes) -> UserError:
    return UserError(f"{path} is not a readable image ({len(data)} bytes): a complete JPEG or PNG file is expected")


def _follow(data: bytes) -> tuple[tuple[int, int] | None, bool, bool]:
    """Follow the segments of a JPEG or of its first bytes. An embedded thumbnail lies inside a segment and is skipped.

    Returns:
        (height, width) from the first frame header, None if it is missing or has a zero side; whether a scan with data
        follows it; and whether the end-of-image marker was reached.
    """
    at, size, scanned = len(JPEG), None, False
    while found := MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker in (START, END):
            return size, scanned, marker == END
        end = at + int.from_bytes(data[at : at + 2], "big")
        if marker in SIZES and size is None and at + 7 <= len(data):
            sides = struct.unpack(">HH", data[at + 3 : at + 7])
            size = sides if all(sides) else None
        scanned |= marker == SCAN and size is not None and end < len(data) and not MARKER.match(data, end)
        at = end
    return size, scanned, False


def _png_size(data: bytes, path: Path) -> tuple[int, int] | None:
    """Return (height, width) from a PNG's header, or None if it is invalid; verify that all chunks and checksums are intact."""
    at, size, pixels = len(PNG), None, False
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise UserError(f"{path} is damaged: a checksum of the PNG data is wrong; copy the file again")
        if at == len(PNG) and kind == b"IHDR" and length == 13:
            width, height, depth, color, *others = struct.unpack(">IIBBBBB", data[at + 8 : at + 21])
            if depth in PNG_DEPTHS.get(color, ()) and others in ([0, 0, 0], [0, 0, 1]):
                size = height, width
        pixels |= kind == b"IDAT"
        if kind == b"IEND":
            return size if pixels else None
        at = end
    raise UserError(f"{path} is truncated: the PNG data stop before their end; copy the file again")
