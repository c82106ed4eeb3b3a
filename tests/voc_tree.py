"""A VOC tree, written file by file."""

from pathlib import Path

import cv2
import numpy as np


def box_xml(name="cat", corners=(2, 3, 10, 12), extra="<difficult>0</difficult>") -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


class Tree:
    """A VOC tree being written; images are 40 pixels wide and 30 high."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (root / folder).mkdir(parents=True)

    def add(self, image_id: str, *objects: str, size: str = SIZE, suffix: str = ".jpg") -> "Tree":
        image = np.random.default_rng(len(image_id)).integers(0, 256, (30, 40, 3), np.uint8)
        encoded = cv2.imencode(suffix.lower(), image)[1].tobytes()
        (self.root / "JPEGImages" / f"{image_id}{suffix}").write_bytes(encoded)
        return self.annotate(image_id, f"<annotation><filename>other</filename>{size}{''.join(objects)}</annotation>")

    def annotate(self, image_id: str, xml: str | bytes) -> "Tree":
        data = xml.encode() if isinstance(xml, str) else xml
        (self.root / "Annotations" / f"{image_id}.xml").write_bytes(data)
        return self

    def split(self, name: str, text: str | bytes) -> "Tree":
        data = text.encode() if isinstance(text, str) else text
        (self.root / "ImageSets/Main" / f"{name}.txt").write_bytes(data)
        return self
