"""Data sets in the layout of Pascal VOC: annotations, split files, photographs; and folders of classes."""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from .case import Case, put
from .template import BOX, an_object, annotation, image

RUN = ("run", "-c", "cpu", "-o", "out", "-f", "voc.json", 'dataloader.voc.classes=["cat", "dog"]')
PARTS = ("voc", "voc.json")
XML, JPG, SPLIT = "voc/Annotations/train0.xml", "voc/JPEGImages/train0.jpg", "voc/ImageSets/Main/train.txt"
GOOD = annotation(an_object())


def bomb(levels: int) -> str:
    entities = ['<!ENTITY e0 "lol">', *(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, levels))]
    return f"<!DOCTYPE a [{''.join(entities)}]>" + annotation(an_object(f"&e{levels - 1};"))


def external(address: str) -> str:
    return f'<!DOCTYPE a [<!ENTITY x SYSTEM "{address}">]>' + annotation(an_object("&x;"))


def corners(**changed: object) -> str:
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), BOX)) | changed
    return annotation(an_object(corners=tuple(box.values())))


ANNOTATIONS: dict[str, tuple] = {
    "empty": ("", "not well-formed"),
    "cut short": (GOOD[:-30], "not well-formed"),
    "text": ("xmin 3", "not well-formed"),
    "binary": (bytes(range(256)), "not well-formed"),
    "zero bytes": (bytes(50), "not well-formed"),
    "an unknown encoding": ('<?xml version="1.0" encoding="latin-99"?>' + GOOD, "not well-formed"),
    "not UTF-8": (annotation(an_object("X")).encode().replace(b"X", b"\xff"), "not well-formed"),
    "two roots": (GOOD + GOOD, "not well-formed"),
    "a bomb of entities": (bomb(12), "entities"),
    "one large entity": (
        f'<!DOCTYPE a [<!ENTITY x "{"y" * 10000}">]>' + annotation(an_object("&x;" * 10000)),
        "entities",
    ),
    "an entity that names itself": ('<!DOCTYPE a [<!ENTITY x "&x;">]>' + annotation(an_object("&x;")), "entities"),
    "an entity of /etc/passwd": (external("file:///etc/passwd"), "entities"),
    "an entity of a file beside": (external("../../../secret.txt"), "entities"),
    "an entity of the network": (external("http://127.0.0.1:9/x"), "entities"),
    "a parameter entity": (
        '<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>' + GOOD,
        "entities",
    ),
    "a public entity": ('<!DOCTYPE a [<!ENTITY x PUBLIC "p" "file:///etc/passwd">]>' + GOOD, "entities"),
    "an unknown entity": (annotation(an_object("&x;")), "not well-formed"),
    "another root": ("<html><body/></html>", "<annotation>", "<html>"),
    "100000 levels deep": ("<a>" * 100_000 + "</a>" * 100_000, "<annotation>"),
    "an object without a box": (annotation("<object><name>cat</name></object>"), "bndbox/xmin", "None"),
    "an object without a name": (annotation(an_object().replace("<name>cat</name>", "")), "<name>"),
    "an object with an empty name": (annotation(an_object(" ")), "<name>"),
    "an unknown class": (annotation(an_object("cow")), "'cow'", "cat, dog"),
    "a very long class": (annotation(an_object("cow" * 100_000)), "cat, dog"),
    "a box without xmax": (GOOD.replace("<xmax>40</xmax>", ""), "bndbox/xmax", "a number", "None"),
    "a box with an empty corner": (corners(xmin=""), "bndbox/xmin", "a number"),
    "a box with a word": (corners(ymin="top"), "bndbox/ymin", "a number", "'top'"),
    "a box with NaN": (corners(xmin="nan"), "bndbox/xmin", "a number", "'nan'"),
    "a box with infinity": (corners(xmax="inf"), "bndbox/xmax", "a number", "'inf'"),
    "a box with 1e400": (corners(xmax="1e400"), "bndbox/xmax", "a number"),
    "a box with 1e300": (corners(xmax="1e300"), "bndbox/xmax", "a number"),
    "a box with a million digits": (corners(xmax="9" * 10**6), "bndbox/xmax", "a number"),
    "a width that is a word": (GOOD.replace("<width>64<", "<width>wide<"), "size/width", "'wide'"),
    "a width of infinity": (GOOD.replace("<width>64<", "<width>inf<"), "size/width", "'inf'"),
    "a width of 1e300": (GOOD.replace("<width>64<", "<width>1e300<"), "size/width", "'1e300'"),
    "a negative width": (GOOD.replace("<width>64<", "<width>-64<"), "size/width", "'-64'"),
}

SPLITS: dict[str, tuple] = {
    "empty": ("", "train", "at least one"),
    "blank lines": ("\n \n", "train", "at least one"),
    "an image that is missing": ("train0\nnothing\n", "nothing", "missing"),
    "a name that climbs": ("../../../secret\n", "secret", "missing"),
    "an absolute name": ("/etc/passwd\n", "passwd", "missing"),
    "a file name": ("train0.jpg\n", "train0.jpg", "missing"),
    "not UTF-8": (b"\xff\xfe\xfa", "UTF-8"),
    "binary": (bytes(range(256)), "UTF-8"),
    "a zero byte": ("train\0\n", "missing"),
    "a very long name": ("x" * 100_000 + "\n", "missing"),
    "too few images": ("train0\ntrain1\n", "batch_size", "2"),
}


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(width: int, height: int, data: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A picture whose header tells another size than it has."""
    data = image(".jpg")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of a kind."""
    while (at := data.find(bytes((0xFF, marker)))) > 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


PICTURE, PNG = image(".jpg"), image(".png")
IMAGES: dict[str, tuple] = {
    "empty": (b"", "JPEG or PNG"),
    "one byte": (b"\xff", "JPEG or PNG"),
    "text": (b"not an image", "JPEG or PNG"),
    "zero bytes": (bytes(5000), "JPEG or PNG"),
    "the first bytes of a JPEG": (PICTURE[:2], "JPEG or PNG"),
    "half a JPEG": (PICTURE[: len(PICTURE) // 2], "truncated"),
    "a JPEG without its end": (PICTURE[:-2], "truncated"),
    "a JPEG without its tables": (PICTURE[:20] + b"\xff\xd9", "JPEG or PNG"),
    "a JPEG without a scan": (PICTURE[: PICTURE.index(b"\xff\xda")] + b"\xff\xd9", "JPEG or PNG"),
    "a JPEG of 40000 x 3": (jpeg(40000, 3), "sides of at most 32766", "40000"),
    "a JPEG of 65500 x 65500": (jpeg(65500, 65500), "pixels", "65500"),
    "a JPEG of 65500 x 0": (jpeg(65500, 0), "JPEG or PNG"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "a PNG without its end": (PNG[:-12], "truncated"),
    "a PNG whose checksum is wrong": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "a PNG header whose checksum is wrong": (PNG[:20] + bytes([PNG[20] ^ 1]) + PNG[21:], "damaged"),
    "a PNG of 30000 x 30000": (png(30000, 30000, bytes(1000)), "pixels", "30000"),
    "a PNG of 10 x 32767": (png(10, 32767, bytes(31 * 32767)), "sides of at most 32766", "32767"),
    "a PNG of 2147483647 x 1": (png(2**31 - 1, 1), "pixels"),
    "a PNG of 0 x 0": (png(0, 0), "JPEG or PNG"),
    "a PNG without pixels": (png(64, 64), "damaged"),
    "a PNG of an unknown kind": (png(64, 64, bytes(20000), 7, 9), "JPEG or PNG"),
    "a PNG with a huge chunk": (PNG[:33] + b"\x7f\xff\xff\xffIDAT" + PNG[41:], "truncated"),
    "a BMP": (image(".bmp"), "JPEG or PNG"),
    "a TIFF": (image(".tiff"), "JPEG or PNG"),
    "a WebP": (image(".webp"), "JPEG or PNG"),
    "a page": (b"<html><body>404</body></html>", "JPEG or PNG"),
}


def cases() -> Iterator[Case]:
    for name, (content, *words) in ANNOTATIONS.items():
        yield Case(
            "VOC annotation",
            name,
            RUN,
            ("train0.xml", *words) if "class" not in name else tuple(words),
            put(XML, content),
            PARTS,
        )
    for name, (content, *words) in SPLITS.items():
        yield Case("split file", name, RUN, tuple(words), put(SPLIT, content), PARTS)
    for name, (content, *words) in IMAGES.items():
        yield Case("image", name, RUN, ("train0.jpg", *words), put(JPG, content), PARTS)

    def removed(name: str):
        def make(folder: Path) -> None:
            (folder / name).rename(folder / "kept")

        return make

    def linked(name: str, target: str):
        def make(folder: Path) -> None:
            (folder / name).unlink()
            os.symlink(target, folder / name)

        return make

    def a_folder(name: str):
        def make(folder: Path) -> None:
            (folder / name).unlink()
            (folder / name).mkdir()

        return make

    def sparse(name: str):
        def make(folder: Path) -> None:
            with open(folder / name, "r+b") as file:
                file.truncate(1 << 33)

        return make

    yield Case("VOC annotation", "missing", RUN, ("train0.xml", "No such file"), removed(XML), PARTS)
    yield Case("VOC annotation", "a folder", RUN, ("train0.xml", "not a file"), a_folder(XML), PARTS)
    yield Case("VOC annotation", "a secret", RUN, ("train0.xml", "XML"), linked(XML, "../../../secret.txt"), PARTS)
    yield Case("VOC annotation", "a device", RUN, ("train0.xml", "not a file"), linked(XML, "/dev/zero"), PARTS)
    yield Case("VOC annotation", "8 GB of nothing", RUN, ("train0.xml", "at most"), sparse(XML), PARTS)
    yield Case("split file", "missing", RUN, ("'train'", "test, val"), removed(SPLIT), PARTS)
    yield Case("split file", "a folder", RUN, ("'train'", "test, val"), a_folder(SPLIT), PARTS)
    yield Case("split file", "no splits at all", RUN, ("'train'", "has no split"), removed("voc/ImageSets"), PARTS)
    yield Case("split file", "8 GB of nothing", RUN, ("train.txt", "at most"), sparse(SPLIT), PARTS)
    yield Case("image", "missing", RUN, ("train0.jpg", "missing"), removed(JPG), PARTS)
    yield Case("image", "a folder", RUN, ("train0.jpg", "not a file"), a_folder(JPG), PARTS)
    yield Case("image", "a secret", RUN, ("train0.jpg", "JPEG or PNG"), linked(JPG, "../../../secret.txt"), PARTS)
    yield Case("image", "a device", RUN, ("train0.jpg", "not a file"), linked(JPG, "/dev/zero"), PARTS)
    yield Case("image", "8 GB of nothing", RUN, ("train0.jpg", "at most"), sparse(JPG), PARTS)
    yield Case("image", "no photographs at all", RUN, ("JPEGImages", "not a folder"), removed("voc/JPEGImages"), PARTS)
    test = "voc/JPEGImages/test3.jpg"
    yield Case("image", "a test image cut short", RUN, ("test3.jpg", "truncated"), put(test, PICTURE[:-2]), PARTS)

    folder_run = ("run", "-c", "cpu", "-o", "out", "-f", "classes.json")
    folder_parts = ("classes", "classes.json")
    kind = "folder of classes"
    yield Case(kind, "missing", folder_run, ("classes/train", "not a folder"), removed("classes"), folder_parts)
    yield Case(kind, "no classes", folder_run, ("classes/train", "subfolder"), removed_all, folder_parts)
    yield Case(kind, "no val", folder_run, ("classes/val", "not a folder"), removed("classes/val"), folder_parts)
    yield Case(kind, "other classes in val", folder_run, ("cat, dog", "got cat"), removed("classes/val/dog"), folder_parts)
    yield Case(kind, "a class without images", folder_run, ("dog", "at least one"), emptied, folder_parts)
    broken = "classes/train/dog/3.png"
    yield Case(kind, "a broken image", folder_run, ("3.png", "JPEG or PNG"), put(broken, b"text"), folder_parts)
    huge = put(broken, png(30000, 30000))
    yield Case(kind, "a huge image", folder_run, ("3.png", "pixels"), huge, folder_parts)

    copy = ("data", "to-coco", "--voc", "voc", "--root", "copy")
    yield Case("split file", "a copy of a name that climbs", (*copy, "--splits", "../train"), ("'../train'",), parts=PARTS)
    yield Case("image", "a copy of half a JPEG", copy, ("train0.jpg", "truncated"), put(JPG, PICTURE[:-2]), PARTS)
    broken = put("voc/JPEGImages/val2.jpg", without(PICTURE, 0xDB))
    yield Case("image", "a copy of what only decoding finds", copy, ("val2.jpg", "JPEG or PNG"), broken, PARTS)


def removed_all(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / "classes/train" / name).rename(folder / name)


def emptied(folder: Path) -> None:
    for file in (folder / "classes/train/dog").iterdir():
        file.unlink()
