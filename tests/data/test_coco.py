"""Data in COCO's format: hand-written files, the copy of a VOC tree, and what is wrong with others."""

import json

import cv2
import numpy as np
import pytest

from nnabla_detofa import config
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.coco import COCODataset, write_coco
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.sets import open_sets
from nnabla_detofa.data.voc import VOCDataset


@pytest.fixture
def content():
    """Two images of 40 x 30 pixels; category ids with gaps, not in order."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 30, "width": 40},
            {"id": 3, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [2, 3, 10, 20], "area": 77.5, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 5, "bbox": [30, 20, 20, 20], "iscrowd": 0},
            {"id": 4, "image_id": 3, "category_id": 5, "bbox": [30, 20, 0, 5], "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 5, "name": "cat"}],
    }


@pytest.fixture
def opened(tmp_path, content):
    """Write what `content` is by then, and open it."""
    image = cv2.imencode(".jpg", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(image)

    def opened(**options) -> COCODataset:
        (tmp_path / "a.json").write_text(json.dumps(content))
        return COCODataset(tmp_path / "a.json", tmp_path / "images", **options)

    return opened


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_category_without_annotations_may_have_the_name_of_another(opened, content, number):
    """As Roboflow exports a single class: with id 0, and again as its own supercategory."""
    content["categories"].insert(number, {"id": 0, "name": "cat", "supercategory": "none"})
    dataset = opened()
    assert dataset.classes == ("cat", "toothbrush") and dataset.load(1).labels.tolist() == [1, 0, 0]
    content["annotations"][0]["category_id"] = 0
    with pytest.raises(UserError, match="must have a unique id and a unique name"):
        opened()


def test_a_file_by_hand(opened, caplog):
    dataset = opened()
    assert (len(dataset), dataset.classes, dataset.image_ids) == (2, ("cat", "toothbrush"), ("b.jpg", "a.jpg"))
    sample = dataset.load(1)
    assert sample.image.shape == (30, 40, 3) and sample.boxes.dtype == np.float32
    assert sample.boxes.tolist() == [[2, 3, 12, 23], [0, 0, 40, 30], [30, 20, 40, 30]]
    assert sample.labels.tolist() == [1, 0, 0] and sample.difficult.tolist() == [False, True, False]
    assert dataset.areas(1).tolist() == [77.5, 1200, 100]  # of the mask where it is told, else of the box
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "clipped boxes that extend outside their images: 1",
        "dropped boxes without area: 1",
    ]
    assert dataset.load(0).boxes.shape == (0, 4)
    assert opened(keep_crowds=False).load(1).labels.tolist() == [1, 0]
    assert opened(classes=("toothbrush", "dog", "cat")).load(1).labels.tolist() == [0, 2, 2]


def test_boxes_in_shares_of_the_image_are_left_out_with_a_word(opened, content, caplog):
    for entry, box in zip(content["annotations"], ([0.1, 0.2, 0.5, 0.7], [0, 0, 1, 1], [0, 0, 40, 1], [0.5, 0.5, 1, 2])):
        entry.update(bbox=box)
    assert opened().objects(1)[0].tolist() == [[0, 0, 40, 1], [0.5, 0.5, 1.5, 2.5]]
    assert "dropped boxes with corners in 0..1 (boxes must be in pixels" in caplog.text


WRONG = [
    (("images",), {}, "must contain a list 'images'"),
    (("images",), [], "must list at least one image"),
    (("images", 0, "id"), 3, r"images\[1\].*must have a unique integer id"),
    (("images", 0, "id"), True, r"images\[0\].*must have a unique integer id"),
    (("images", 0, "file_name"), "../a.jpg", "file_name must be a path below"),
    (("images", 0, "file_name"), "/etc/passwd", "file_name must be a path below"),
    (("images", 0, "file_name"), "c.jpg", r"c.jpg is missing"),
    (("images", 0, "width"), 0, "height and width must be integers above 0, got 30 and 0"),
    (("categories",), [], "at least one category"),
    (("categories", 0, "id"), 5, r"categories\[1\] .* must have a unique id and a unique name"),
    (("categories", 0, "name"), " ", r"categories\[0\] .* must have a unique id and a unique name"),
    (("categories", 0), "cat", r"categories\[0\] .* must have a unique id and a unique name"),
    (("annotations", 0, "bbox"), [1, 2, 3], r"annotations\[0\] .* bbox must be four finite numbers"),
    (("annotations", 0, "bbox"), [1, 2, 3, float("nan")], "bbox must be four finite numbers"),
    (("annotations", 0, "bbox"), [1, 2, 3, 10**400], "bbox must be four finite numbers"),
    (("annotations", 0), 5, "bbox must be four finite numbers"),
    (("annotations", 0, "image_id"), 99, "image_id must be the id of a listed image, got 99"),
    (("annotations", 0, "image_id"), [3], "category_id and image_id must be integers"),
    (("annotations", 0, "category_id"), 6, "category_id must be the id of a listed category, got 6"),
    (("annotations", 0, "iscrowd"), "no", "iscrowd must be 0 or 1, got 'no'"),
    (("annotations", 0, "area"), "big", "area must be a number from 0 to 1e9, got 'big'"),
    (("annotations", 0, "area"), -5, "area must be a number from 0 to 1e9, got -5"),
    (("annotations", 0, "bbox"), [1, 2, -3, 4], "width and height of bbox must not be negative"),
    (("annotations", 1, "id"), 1, r"annotations\[1\] .* must have a unique integer id, got 1"),
    (("images", 0, "file_name"), "./a.jpg", r"images\[1\].*file_name 'a.jpg' is already used by another image"),
    (("images", 0, "file_name"), "x" * 300 + "/a.jpg", "a.jpg is missing"),
    (("images", 0, "height"), 10**25, "height and width must be integers above 0"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_what_is_wrong_is_named(opened, content, place, value, message):
    *parents, last = place
    entry = content
    for key in parents:
        entry = entry[key]
    entry[last] = value
    with pytest.raises(UserError, match=message):
        opened()


def test_unreadable_files_are_named(opened, content, tmp_path):
    opened().check_images()
    (tmp_path / "images/a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match="a.jpg is not a readable image"):
        opened().check_images()
    content["images"][0]["width"] = 41
    with pytest.raises(UserError, match=r"b.jpg is 30 x 40 pixels \(height x width\), but its annotations say 30 x 41"):
        opened().load(0)
    with pytest.raises(UserError, match="has the category 'cat'; known classes are dog, toothbrush"):
        opened(classes=("dog", "toothbrush"))
    (tmp_path / "b.json").write_text("{")
    for name, message in (("b.json", "are not JSON"), ("c.json", "cannot read the annotations .*cocodataset.org")):
        with pytest.raises(UserError, match=message):
            COCODataset(tmp_path / name, tmp_path / "images")
    with pytest.raises(UserError, match="other is not a folder; .*cocodataset.org"):
        COCODataset(tmp_path / "a.json", tmp_path / "other")


def test_the_copy_of_a_voc_tree_has_the_same_boxes(tmp_path):
    voc = write_digits(tmp_path / "voc", train=6, val=3, test=3, image_size=64, crops_train=20, crops_val=10)
    root = write_coco(voc, tmp_path / "coco", ("train", "test"))
    for split in ("train", "test"):
        theirs = VOCDataset(voc, split)
        ours = COCODataset(root / f"annotations/instances_{split}.json", root / split)
        assert ours.classes == VOCDataset(voc, ("train", "test")).classes and len(ours) == len(theirs)
        for index in range(len(ours)):
            one, other = ours.load(index), theirs.load(index)
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_allclose(one.boxes - other.boxes, np.tile([0, 0, 1, 1], (len(one.boxes), 1)))
            names = [[data.classes[label] for label in sample.labels] for data, sample in ((ours, one), (theirs, other))]
            assert names[0] == names[1]
    with pytest.raises(UserError, match="--root must be a new or empty folder"):
        write_coco(voc, root, ("train",))

    file = tmp_path / "run.json"
    splits = {name: {"annotations": f"annotations/instances_{name}.json", "images": name} for name in ("train", "test")}
    data = {"coco": {"root": str(root), "image_size": 64, "holdout": 2, **splits}}
    file.write_text(json.dumps({"network": {"centernet_ofa_resnet50": {}}, "dataloader": data}))
    sets = open_sets(config.load(file))
    assert [len(sets.train), len(sets.val), len(sets.test)] == [4, 2, 3] and sets.test.areas(0).shape == (
        len(sets.test.objects(0)[0]),
    )
