"""What a data set holds, as one digest: by it a run, and the tables, notice that the data are not what it began from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import UserError
from ..common.reading import read_bytes
from ..config import CocoData, ImageFolderData, VocData
from .coco import MOST_BYTES
from .image_folder import ImageFolder
from .voc import find_images


def content_digest(data: VocData | CocoData | ImageFolderData) -> str | None:
    """Digest of what a run reads of its data; None where that is missing or broken.

    VOC: names and sizes in bytes of the listed photographs, and their annotations. COCO: the annotation files, which list the
    photographs. Image folders: the photographs' names. So photographs that changed under their old names are noticed in VOC's
    layout alone. A digest is taken once in a process.
    """
    try:
        return _digest(data, Path(data.root).absolute())
    except (OSError, ValueError, UserError):  # whoever reads the data says what is wrong with them
        return None


@functools.lru_cache(maxsize=64)
def _digest(data: VocData | CocoData | ImageFolderData, root: Path) -> str:
    found = hashlib.sha256()
    for part in _parts(data, root):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


def _parts(data: VocData | CocoData | ImageFolderData, root: Path) -> Iterator[bytes]:
    if isinstance(data, VocData):
        for splits in (data.train, data.val, data.test):
            yield " ".join(splits).encode()
            for image, annotation, _ in find_images(root, splits, warn=False):
                yield f"{image.relative_to(root).as_posix()} {image.stat().st_size}".encode(errors="surrogateescape")
                yield read_bytes(annotation, "the annotation")
    elif isinstance(data, CocoData):
        for split in filter(None, (data.train, data.val, data.test)):
            yield read_bytes(root / split.annotations, "the annotations", MOST_BYTES)
    else:
        for split in (data.train, data.val):
            for image in ImageFolder(root / split).files:
                yield f"{image.parent.name}/{image.name}".encode(errors="surrogateescape")
