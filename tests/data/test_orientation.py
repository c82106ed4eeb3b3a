"""Images that Exif turns: the size and the orientation are OpenCV's, and VOC's and COCO's boxes are judged alike."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from voc_tree import Tree, box_xml

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_coco, check_voc
from nnabla_detofa.data.coco import COCODataset, write_coco
from nnabla_detofa.data.images import ImageHeader, inspect_image, read_image
from nnabla_detofa.data.objects import orient
from nnabla_detofa.data.voc import VOCDataset

HEIGHT, WIDTH = 20, 40
BOX = (4, 2, 12, 8)  # x1 y1 x2 y2, the far edges not included: a white rectangle on black
ORIENTATIONS = range(1, 9)


def picture() -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return pixels


def encoded(kind: str, orientation: int = 1, **options) -> bytes:
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(content, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return content.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def in_png(*chunks: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def white(image: np.ndarray) -> list[int]:
    """The rectangle of an image that is white."""
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_header_and_the_boxes_are_those_of_the_image_that_is_read(tmp_path, kind, orientation):
    file = tmp_path / "a"
    file.write_bytes(encoded(kind, orientation))
    header, image = inspect_image(file), read_image(file)
    assert header == ImageHeader((HEIGHT, WIDTH), orientation) and header.size == image.shape[:2]
    assert orient(np.array([BOX]), header, (WIDTH, HEIGHT)).tolist() == [white(image)]


JPEG = encoded("JPEG")
ADOBE = b"Adobe\0\x64\0\0\0\0\1"
METADATA = {
    "rotation by XMP alone": JPEG[:2] + segment(0xE1, XMP) + JPEG[2:],
    "XMP before Exif": JPEG[:2] + segment(0xE1, XMP) + encoded("JPEG", 6)[2:],
    "a large ICC profile before Exif": JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60000)) + encoded("JPEG", 6)[2:],
    "JPEG Exif that is no TIFF": JPEG[:2] + segment(0xE1, b"Exif\0\0nothing like TIFF") + JPEG[2:],
    "JPEG Exif cut short": JPEG[:2] + segment(0xE1, b"Exif\0\0II*\0") + JPEG[2:],
    "an empty APP1": JPEG[:2] + segment(0xE1, b"") + JPEG[2:],
    "progressive": encoded("JPEG", 6, progressive=True),
    "restart markers": encoded("JPEG", 6, restart_marker_blocks=1),
    "optimized tables": encoded("JPEG", 8, optimize=True),
    "a comment and Adobe's segment": JPEG[:2] + segment(0xFE, b"x" * 99) + segment(0xEE, ADOBE) + encoded("JPEG", 7)[2:],
    "PNG eXIf that is no TIFF": in_png(chunk(b"eXIf", b"nothing like TIFF")),
    "PNG with 2 MB of text": in_png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 21)))),
    "PNG with 2 MB of ICC profile": in_png(chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 21)))),
    "PNG with XMP": in_png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP[29:])),
}


@pytest.mark.parametrize("name", METADATA)
def test_the_check_says_of_metadata_what_training_does(tmp_path, name, capfd):
    tree = Tree(tmp_path / "voc").add("a", box_xml()).split("train", "a")
    file = next((tree.root / "JPEGImages").iterdir())
    file.write_bytes(METADATA[name])
    size = read_image(file).shape[:2]
    written = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    tree.annotate("a", f"<annotation>{written}{box_xml()}</annotation>")
    for whole in (False, True):
        report = check_voc(tree.root, whole=whole)
        assert (report.fatal, report.warnings) == ([], []), report
    capfd.readouterr()
    assert VOCDataset(tree.root, "train").size(0) == size and capfd.readouterr() == ("", "")  # libjpeg says what it dislikes


def in_voc(root, orientation: int, size: tuple[int, int] | None):
    """A VOC tree with the picture, its rectangle, and a size (height, width)."""
    written = size and f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    tree = Tree(root).add("a", box_xml(corners=(BOX[0] + 1, BOX[1] + 1, BOX[2], BOX[3])), size=written or "")
    (root / "JPEGImages/a.jpg").write_bytes(encoded("JPEG", orientation))
    return tree.split("train", "a").root


def in_coco(root, orientation: int, size: tuple[int, int]):
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    (root / "train/a.jpg").write_bytes(encoded("JPEG", orientation))
    box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_on_the_stored_pixels_are_turned_or_it_is_said(tmp_path, orientation, caplog):
    stored = HEIGHT, WIDTH
    voc, coco = in_voc(tmp_path / "voc", orientation, stored), in_coco(tmp_path / "coco", orientation, stored)
    one = VOCDataset(voc, "train").load(0)
    other = COCODataset(coco / "annotations/instances_train.json", coco / "train").load(0)
    assert [*one.boxes[0, :2], *one.boxes[0, 2:] + 1] == other.boxes[0].tolist()
    reports = check_voc(voc), check_coco(coco)
    assert not any(report.fatal for report in reports)
    said = [record.getMessage() for record in caplog.records], *(report.warnings for report in reports)
    if orientation == 1:
        assert said == ([], [], [])
        return
    words = f"Exif tag Orientation {orientation}", "are rotated with the image" if orientation > 4 else "is assumed"
    assert [len(texts) for texts in said] == [2, 1, 1] and all(
        word in text for texts in said for text in texts for word in words
    )
    if orientation > 4:  # of the others nobody knows
        assert other.boxes[0].tolist() == white(other.image)
        again = write_coco(voc, tmp_path / "copy", ["train"])
        copied = COCODataset(again / "annotations/instances_train.json", again / "train").load(0)
        assert copied.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_boxes_on_the_turned_pixels_stay_as_they_are(tmp_path, orientation, caplog):
    read = WIDTH, HEIGHT
    voc, coco = in_voc(tmp_path / "voc", orientation, read), in_coco(tmp_path / "coco", orientation, read)
    assert VOCDataset(voc, "train").objects(0)[0].tolist() == [[4, 2, 11, 7]]
    assert COCODataset(coco / "annotations/instances_train.json", coco / "train").objects(0)[0].tolist() == [list(BOX)]
    assert not caplog.records and not check_voc(voc).warnings and not check_coco(coco).warnings


@pytest.mark.parametrize("size", [None, (0, 0), (30, 50)])
def test_a_size_that_tells_nothing_is_a_warning_by_the_tag(tmp_path, size, caplog):
    voc = in_voc(tmp_path / "voc", 6, size)
    VOCDataset(voc, "train")
    assert "has the Exif tag Orientation 6" in caplog.text and "rotated is assumed" in caplog.text
    assert any("has the Exif tag Orientation 6" in text for text in check_voc(voc).warnings)


def test_coco_refuses_a_size_that_is_neither(tmp_path):
    coco = in_coco(tmp_path / "coco", 6, (30, 50))
    message = r"a.jpg is 40 x 20 pixels \(height x width\) \(with its Exif tag Orientation 6\), but its annotations say 30 x 50"
    with pytest.raises(UserError, match=message):
        COCODataset(coco / "annotations/instances_train.json", coco / "train")
    assert any("with its Exif tag Orientation 6" in text for text in check_coco(coco).fatal)
