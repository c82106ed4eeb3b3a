"""Digest of a dataset's content, by which runs and tables detect that the data changed since a run started."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import UserError
from ..common.reading import read_bytes
from ..config import AnyData, CocoData, OwnData, VocData, YoloData
from . import yolo
from .coco import MAX_BYTES
from .image_folder import ImageFolder
from .own import own_content
from .voc import find_images


def content_digest(data: AnyData) -> str | None:
    """Return the SHA-256 digest (hex) of the dataset of a run, or None if files are missing or broken.

    VOC: the names and sizes in bytes of the listed images, and the content of their annotations. COCO: the content of the
    annotation files, which list the images. YOLO: the description, the names and sizes in bytes of the images, and the
    content of their labels. A dataset of the user's own: the names and sizes in bytes of its images, and their objects. Image
    folders: the names of the images. Images that changed under the same name are therefore detected by their size, but not in
    COCO's format and in image folders. The digest is computed once, until `forget_digests`.
    """
    try:
        return _digest(data, Path(data.root).absolute())
    except (OSError, ValueError, UserError):  # the dataset classes report what is wrong with the data
        return None


def forget_digests() -> None:
    """Let `content_digest` read the data again: a process may start several runs, between which the data may change."""
    _digest.cache_clear()


@functools.lru_cache(maxsize=64)
def _digest(data: AnyData, root: Path) -> str:
    found = hashlib.sha256()
    for part in _parts(data, root):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


def _parts(data: AnyData, root: Path) -> Iterator[bytes]:
    if isinstance(data, VocData):
        for splits in (data.train, data.val, data.test):
            yield " ".join(splits).encode()
            for image, annotation, _ in find_images(root, splits, warn=False):
                yield f"{image.relative_to(root).as_posix()} {image.stat().st_size}".encode(errors="surrogateescape")
                yield read_bytes(annotation, "the annotation")
    elif isinstance(data, CocoData):
        for split in filter(None, (data.train, data.val, data.test)):
            yield read_bytes(root / split.annotations, "the annotations", MAX_BYTES)
    elif isinstance(data, OwnData):
        yield from own_content(data)
    elif isinstance(data, YoloData):
        about = yolo.read_description(root, data.description)
        yield read_bytes(about.file, "the description of the dataset")
        for key in filter(None, (data.train, data.val, data.test)):
            yield key.encode()
            for file in yolo.find_images(about, key, warn=False):
                yield f"{file.name} {file.image.stat().st_size}".encode(errors="surrogateescape")
                yield read_bytes(file.labels, "the labels") if file.labels.exists() else b""
    else:
        for folder in (data.train, data.val):
            for image in ImageFolder(root / folder).files:
                yield f"{image.parent.name}/{image.name}".encode(errors="surrogateescape")
