"""Data sets in COCO's format."""

from collections.abc import Callable, Iterator

from .case import Case, changed, put

RUN = ("run", "-c", "cpu", "-o", "out", "-f", "coco.json")
PARTS = ("coco", "coco.json")
FILE = "coco/train.json"


def entry(key: str, **values: object) -> Callable[[dict], None]:
    """Change the first entry of a list; a value `...` removes it."""

    def change(content: dict) -> None:
        content[key][0] |= values
        for name in [name for name, value in values.items() if value is ...]:
            del content[key][0][name]

    return change


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


FILES: dict[str, tuple] = {
    "empty": ("", "not JSON"),
    "cut short": ('{"images": [', "not JSON"),
    "XML": ("<annotation/>", "not JSON"),
    "not UTF-8": (b"\xff\xfe\xfa{}", "not JSON"),
    "a list": ("[]", "'images'"),
    "a number": ("3", "'images'"),
    "no entries": ("{}", "'images'"),
    "a mapping of images": ('{"images": {}, "annotations": [], "categories": []}', "'images'"),
    "a list that is there twice": ('{"images": [], "annotations": [1], "categories": [], "annotations": []}', "duplicated"),
    "no annotations": ('{"images": [], "categories": []}', "'annotations'"),
    "no categories": ('{"images": [], "annotations": []}', "'categories'"),
    "all empty": ('{"images": [], "annotations": [], "categories": []}', "category"),
    "deep lists": ("[" * 100_000, "not JSON"),
    "an integer of 10000 digits": ('{"images": [' + "9" * 10000 + "]}", "not JSON"),
}

CHANGES: dict[str, tuple] = {
    "an image that is a number": (lambda c: c["images"].__setitem__(0, 3), "images[0]", "3"),
    "an image deep inside lists": (lambda c: c["images"].__setitem__(0, nested(900)), "images[0]"),
    "an image with a long entry": (entry("images", id="x" * 100_000), "images[0]"),
    "an image without id": (entry("images", id=...), "images[0]", "integer id"),
    "an image whose id is a string": (entry("images", id="0"), "images[0]", "integer id"),
    "an image whose id is true": (entry("images", id=True), "images[0]", "integer id"),
    "two images of one id": (entry("images", id=1), "images[1]", "unique integer id"),
    "two images of one file": (entry("images", file_name="train1.jpg"), "images[1]", "another image"),
    "no file name": (entry("images", file_name=...), "file_name", "None"),
    "an empty file name": (entry("images", file_name=""), "file_name", "''"),
    "a file name that is a number": (entry("images", file_name=3), "file_name", "3"),
    "a file name that climbs": (entry("images", file_name="../../../secret.txt"), "file_name", "below"),
    "a file name that climbs in the middle": (entry("images", file_name="a/../../train.json"), "file_name", "below"),
    "an absolute file name": (entry("images", file_name="/etc/passwd"), "file_name", "below"),
    "a file name with a zero byte": (entry("images", file_name="a\0b"), "file_name", "below"),
    "a file name with half a character": (entry("images", file_name="\ud800/a.jpg"), "missing"),
    "a very long file name": (entry("images", file_name="a" * 100_000), "missing"),
    "a file that is missing": (entry("images", file_name="nothing.jpg"), "nothing.jpg", "missing"),
    "a file name that is the folder": (entry("images", file_name="."), "file_name"),
    "no height": (entry("images", height=...), "height", "None"),
    "a height of 0": (entry("images", height=0), "height", "0"),
    "a negative width": (entry("images", width=-64), "width", "-64"),
    "a height that is no integer": (entry("images", height=64.0), "height", "64.0"),
    "a huge width": (entry("images", width=10**40), "width"),
    "the size of another image": (entry("images", height=63), "64 x 64", "63 x 64"),
    "an annotation that is null": (lambda c: c["annotations"].__setitem__(0, None), "annotations[0]", "bbox"),
    "no box": (entry("annotations", bbox=...), "annotations[0]", "bbox", "None"),
    "a box of three": (entry("annotations", bbox=[1, 2, 3]), "bbox", "four"),
    "a box of strings": (entry("annotations", bbox=["1", "2", "3", "4"]), "bbox", "four"),
    "a box of NaN": (entry("annotations", bbox=[float("nan"), 1, 2, 3]), "bbox", "nan"),
    "a box of infinity": (entry("annotations", bbox=[0, 0, float("inf"), 3]), "bbox", "inf"),
    "a box of huge integers": (entry("annotations", bbox=[0, 0, 10**400, 3]), "bbox", "finite"),
    "a box of a long list": (entry("annotations", bbox=[1] * 100_000), "bbox", "four"),
    "a negative width of a box": (entry("annotations", bbox=[30, 30, -4, 5]), "bbox", "negative"),
    "a box that is a mapping": (entry("annotations", bbox={"x": 1}), "bbox", "four"),
    "an image id that is unknown": (entry("annotations", image_id=99), "image_id", "99"),
    "an image id that is a string": (entry("annotations", image_id="0"), "image_id", "'0'"),
    "no image id": (entry("annotations", image_id=...), "image_id", "None"),
    "a category that is unknown": (entry("annotations", category_id=7), "category_id", "7"),
    "a category that is a list": (entry("annotations", category_id=[0]), "category_id", "[0]"),
    "two annotations of one id": (entry("annotations", id=1), "annotations[1]", "unique integer id"),
    "a crowd of 2": (entry("annotations", iscrowd=2), "iscrowd", "2"),
    "a crowd that is a list": (entry("annotations", iscrowd=[]), "iscrowd", "[]"),
    "a negative area": (entry("annotations", area=-1), "area", "-1"),
    "an area of NaN": (entry("annotations", area=float("nan")), "area", "nan"),
    "a category without a name": (entry("categories", name=...), "categories[0]", "name"),
    "a category with an empty name": (entry("categories", name=""), "categories[0]", "name"),
    "a category whose name is a number": (entry("categories", name=3), "categories[0]", "name"),
    "two categories of one name": (entry("categories", name="dog"), "categories[1]", "unique name"),
    "two categories of one id": (entry("categories", id=1), "categories[1]", "id"),
    "a category that is a string": (lambda c: c["categories"].__setitem__(0, "cat"), "categories[0]", "'cat'"),
}


def cases() -> Iterator[Case]:
    kind = "COCO"
    for name, (content, *words) in FILES.items():
        yield Case(kind, name, RUN, ("train.json", *words), put(FILE, content), PARTS)
    for name, (change, *words) in CHANGES.items():
        yield Case(kind, name, RUN, tuple(words), changed(FILE, change), PARTS)
    yield Case(kind, "missing", RUN, ("nothing.json", "No such file"), changed("coco.json", _named("nothing.json")), PARTS)
    yield Case(kind, "a folder", RUN, ("coco/train", "not a file"), changed("coco.json", _named("train")), PARTS)
    unknown = changed("coco/test.json", entry("categories", name="cow"))
    yield Case(kind, "another category in test", RUN, ("'cow'", "cat, dog"), unknown, PARTS)
    broken = put("coco/train/train0.jpg", b"text")
    yield Case(kind, "an image that is text", RUN, ("train0.jpg", "JPEG or PNG"), broken, PARTS)


def _named(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["dataloader"]["coco"]["train"]["annotations"] = name

    return change
