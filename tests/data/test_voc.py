import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from voc_tree import SIZE, Tree, box_xml

from nnabla_detofa import config
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.augment import letterbox
from nnabla_detofa.data.image_folder import ImageFolder, center_crop, random_crop
from nnabla_detofa.data.images import MAX_SIDE, check_whole, read_image
from nnabla_detofa.data.sets import open_sets
from nnabla_detofa.data.voc import VOC_CLASSES, VOCDataset

BCCD = os.environ.get("DETOFA_BCCD")


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path / "voc")


def test_a_sample(tree):
    tree.add("a", box_xml("dog"), box_xml("cat", (1, 1, 40, 30), "<difficult>1</difficult>")).split("train", "a\n")
    dataset = VOCDataset(tree.root, "train")
    sample = dataset.load(0)
    assert (len(dataset), dataset.classes, dataset.image_ids, sample.image_id) == (1, ("cat", "dog"), ("a",), "a")
    assert sample.image.shape == (30, 40, 3) and sample.image.dtype == np.uint8
    assert sample.boxes.tolist() == [[1, 2, 9, 11], [0, 0, 39, 29]] and sample.boxes.dtype == np.float32
    assert sample.labels.tolist() == [1, 0] and sample.difficult.tolist() == [False, True]
    for own, loaded in zip(dataset.objects(0), (sample.boxes, sample.labels, sample.difficult)):
        assert own is loaded
    easy = VOCDataset(tree.root, "train", keep_difficult=False)
    assert easy.classes == ("cat", "dog") and easy.load(0).labels.tolist() == [1]


def test_quirks_of_real_split_files_and_annotations(tree):
    tree.add("a", box_xml(corners=("2.5", "3", "10", " 12 "), extra=""), suffix=".JPG").add("b.c", suffix=".png")
    tree.add(
        "d", box_xml(" cat ", extra="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"), size="", suffix=".jpeg"
    )
    tree.annotate("a", b"\xef\xbb\xbf" + (tree.root / "Annotations/a.xml").read_bytes())
    tree.split("train", b"\xef\xbb\xbfa  1\r\n\r\nb.c -1\r\n  d\r\n")
    dataset = VOCDataset(tree.root, ["train"])
    assert dataset.image_ids == ("a", "b.c", "d") and dataset.classes == ("cat",)
    assert dataset.load(0).boxes.tolist() == [[1.5, 2, 9, 11]]
    assert dataset.load(1).boxes.shape == (0, 4) and dataset.load(2).labels.tolist() == [0]


def test_splits_of_several_years_are_merged_in_order(tmp_path):
    Tree(tmp_path / "VOC2007").add("7", box_xml()).split("trainval", "7").split("cat_trainval", "7 1")
    Tree(tmp_path / "VOC2012").add("12", box_xml("person")).split("trainval", "12").split("train", "12\n12")
    merged = VOCDataset(tmp_path, ["VOC2012/trainval", "VOC2007/trainval"], VOC_CLASSES)
    assert merged.image_ids == ("12", "7") and merged.load(0).labels.tolist() == [14]
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)
    with pytest.raises(UserError, match="VOC2007/trainval, VOC2012/train, VOC2012/trainval$"):
        VOCDataset(tmp_path, "trainval")
    for climbing in ("../VOC2007/trainval", "VOC2007/../VOC2012/train"):
        with pytest.raises(UserError, match="must be one of"):
            VOCDataset(tmp_path / "VOC2012", climbing)


def test_repeated_images_count_once(tree, caplog):
    tree.add("a", box_xml()).split("train", "a\na").split("val", "a")
    assert VOCDataset(tree.root, ["train", "val"]).image_ids == ("a",)
    assert len(caplog.records) == 2 and "again" in caplog.text


def test_boxes_outside_are_clipped_with_one_warning_each(tree, caplog):
    tree.add("a", box_xml(corners=(0, 5, 41, 9)), box_xml(), box_xml(corners=(35, 25, 39, 31))).split("train", "a")
    dataset = VOCDataset(tree.root, "train")
    assert dataset.load(0).boxes.tolist() == [[0, 4, 39, 8], [1, 2, 9, 11], [34, 24, 38, 29]]
    assert [record.name for record in caplog.records] == ["nnabla_detofa"] * 2
    assert "a.xml: the box (0, 5, 41, 9) extends outside the 40 x 30 pixels of the image" in caplog.text


def test_boxes_without_area_are_left_out(tree, caplog):
    without = (9, 5, 5, 9), (90, 5, 99, 9), (5, 9, 9, 5), (5, -9, 9, 0), (0, 5, 0, 9), (41, 5, 50, 9)
    tree.add("a", *(box_xml(corners=corners) for corners in without), box_xml("dog")).split("train", "a")
    dataset = VOCDataset(tree.root, "train")
    assert dataset.classes == ("cat", "dog") and dataset.load(0).labels.tolist() == [1]
    assert "dropped boxes without area: 6, in 1 file: a.xml" in caplog.text


def test_a_box_of_one_pixel_is_an_object(tree, caplog):
    """VOC's corners are inclusive: one pixel, a line of 5, one in the last column, and one that is clipped to a column."""
    tree.add("a", *(box_xml(corners=c) for c in ((5, 5, 5, 5), (5, 5, 5, 9), (40, 1, 40, 30), (-3, 5, 1, 9)))).split(
        "train", "a"
    )
    expected = [[4, 4, 4, 4], [4, 4, 4, 8], [39, 0, 39, 29], [0, 4, 0, 8]]
    assert VOCDataset(tree.root, "train").load(0).boxes.tolist() == expected
    assert "without area" not in caplog.text


def test_what_a_run_cannot_use_is_found_before_it_starts(tree, caplog):
    tree.add("a", box_xml()).add("b", box_xml()).add("c").split("train", "a\n").split("val", "a\nb\n").split("empty", "c\n")
    file = tree.root / "run.json"
    voc = {"root": str(tree.root), "image_size": 64, "classes": ["cat"], "train": ["train"], "val": ["val"]}
    file.write_text(json.dumps({"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": voc}}))

    def load(test: str):
        return open_sets(config.load(file, [f'dataloader.voc.test=["{test}"]']))

    load("val")
    assert [record.getMessage() for record in caplog.records] == [
        f"dataloader.voc: {split} and train share 1 image, so results on {split} are too optimistic"
        for split in ("val", "test")
    ]
    with pytest.raises(UserError, match="dataloader.voc.test must contain objects to detect, but all of its images are empty"):
        load("empty")
    (tree.root / "JPEGImages/b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="b.jpg is not a readable image"):
        load("val")


def test_the_photograph_is_right_about_its_size(tree, caplog):
    wrong = "<size><width>30</width><height>20</height></size>"
    tree.add("a", box_xml(corners=(5, 5, 40, 30)), size=wrong).split("train", "a")
    dataset = VOCDataset(tree.root, "train")
    for _ in range(2):
        assert dataset.objects(0)[0].tolist() == dataset.load(0).boxes.tolist() == [[4, 4, 39, 29]]
    assert len(caplog.records) == 1 and "is 30 x 40 pixels" in caplog.text


ENTITIES = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation><filename>&z;</filename></annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    "xml, message",
    [
        ("<annotation><object>", "a.xml is not well-formed XML"),
        (b"\x00\x01", "a.xml is not well-formed XML"),
        ("", "a.xml is not well-formed XML"),
        (ENTITIES, "a.xml declares XML entities"),
        (EXTERNAL, "a.xml declares XML entities"),
        (f"<annotation>{SIZE}{box_xml('cow')}</annotation>", "a.xml has an object of class 'cow'; known classes are cat, dog"),
        (f"<annotation>{SIZE}{box_xml(corners=('x', 1, 2, 3))}</annotation>", "a.xml: <bndbox/xmin> of <object>.* got 'x'"),
        (f"<annotation>{SIZE}{box_xml(corners=(1, 'nan', 2, 3))}</annotation>", "a.xml: <bndbox/ymin> .* got 'nan'"),
        (f"<annotation>{SIZE}<object><name>cat</name></object></annotation>", "a.xml: <bndbox/xmin> .* got None"),
    ],
)
def test_broken_annotations_are_named_at_once(tree, xml, message):
    tree.add("a").annotate("a", xml).split("train", "a")
    with pytest.raises(UserError, match=message):
        VOCDataset(tree.root, "train", ("cat", "dog"))


def test_missing_files_are_named(tree, tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder.*ImageSets/Main.*host.robots.ox.ac.uk/pascal/VOC"):
        VOCDataset(tmp_path / "nowhere", "train")
    tree.split("train", "a").split("empty", "\n").split("climb", "../JPEGImages/a").split("latin", b"\xff\xe9")
    with pytest.raises(UserError, match="split 'test' of .* must be one of: climb, empty, latin, train"):
        VOCDataset(tree.root, "test")
    with pytest.raises(UserError, match=r"a\.jpg is missing .*train\.txt lists it"):
        VOCDataset(tree.root, "train")
    with pytest.raises(UserError, match="must list at least one image"):
        VOCDataset(tree.root, "empty")
    tree.add("a")
    with pytest.raises(UserError, match="is missing"):
        VOCDataset(tree.root, "climb")
    with pytest.raises(UserError, match="latin.txt must be a text file in UTF-8"):
        VOCDataset(tree.root, "latin")
    (tree.root / "Annotations/a.xml").unlink()
    with pytest.raises(UserError, match="cannot read the annotation .*a.xml: No such file"):
        VOCDataset(tree.root, "train")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.9, -2])
def test_truncated_photographs_are_found(tmp_path, suffix, kept):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    file = tmp_path / f"a{suffix}"
    file.write_bytes(data)
    assert read_image(file).shape == (40, 60, 3)
    file.write_bytes(data + b"\x00trailing")
    assert read_image(file).shape == (40, 60, 3)
    file.write_bytes(data[: int(len(data) * kept) if 0 < kept < 1 else kept])
    with pytest.raises(UserError, match=f"a{suffix} is (truncated|not a readable image)"):
        read_image(file)


@pytest.mark.parametrize(("suffix", "kept"), [(".jpg", 0.5), (".png", 0.9)])
def test_truncated_photographs_are_found_without_decoding(tree, suffix, kept):
    tree.add("a", box_xml()).add("b", box_xml()).split("train", "a\nb\n")
    data = VOCDataset(tree.root, "train")
    data.check_images()
    whole = cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))[1].tobytes()
    data.files[1].write_bytes(whole)
    data.check_images()
    data.files[1].write_bytes(whole + b"appended by a camera")
    data.check_images()
    data.files[1].write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=f"{data.files[1].stem}.jpg is (truncated|not a readable image)"):
        data.check_images()


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_ends_where_its_own_segments_do(tmp_path, options):
    """A film is appended by a phone, a thumbnail lies in front; neither hides that the end is missing."""
    rng, file = np.random.default_rng(0), tmp_path / "a.jpg"
    data = cv2.imencode(".jpg", rng.integers(0, 256, (40, 60, 3), np.uint8), options)[1].tobytes()
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    for whole in (data, data[:2] + thumbnail + data[2:], data[:2] + 20 * thumbnail + data[2:]):
        for film in (b"", b"\xff\xda", data[:-2], *(rng.bytes(1 << 18) for _ in range(5))):
            file.write_bytes(whole + film)
            assert read_image(file).shape == (40, 60, 3) and check_whole(file) == (40, 60)
    for cut in (data[:-2], data[:2] + thumbnail + data[2:-2], data[:2] + thumbnail, data[:-2] + data):
        file.write_bytes(cut)
        for read in (read_image, check_whole):
            with pytest.raises(UserError, match="a.jpg is (truncated|not a readable image)"):
                read(file)


def test_a_jpeg_without_a_scan_is_found_without_decoding(tmp_path):
    data = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    scan = data.index(b"\xff\xda")
    frame = data[data.index(b"\xff\xc0") :][:19]
    header = data[scan : scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")]
    for content in (data[:2] + frame, data[:scan], data[:scan] + header):
        (tmp_path / "a.jpg").write_bytes(content + b"\xff\xd9")
        for read in (read_image, check_whole):
            with pytest.raises(UserError, match="a.jpg is not a readable image"):
                read(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_no_transform_can_take_is_refused_where_it_is_read(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    for size in ((2, MAX_SIDE), (MAX_SIDE, 2)):
        cv2.imwrite(str(file), np.zeros((*size, 3), np.uint8))
        assert check_whole(file) == size and letterbox(read_image(file), (64, 64))[0].shape == (3, 64, 64)
    for size in ((2, MAX_SIDE + 1), (MAX_SIDE + 1, 2), (40000, 3)):
        cv2.imwrite(str(file), np.zeros((*size, 3), np.uint8))
        for read in (read_image, check_whole):
            with pytest.raises(UserError, match=f"must have sides of at most 32766 pixels, got {size[0]} x {size[1]}"):
                read(file)


@pytest.mark.skipif(not BCCD, reason="DETOFA_BCCD names no folder with the BCCD photographs")
def test_bccd_is_read_whole(caplog):
    dataset = VOCDataset(BCCD, ["trainval", "test"])
    assert len(dataset) == 364 and dataset.classes == ("Platelets", "RBC", "WBC")
    labels = np.concatenate([dataset.objects(i)[1] for i in range(len(dataset))])
    assert len(labels) == 4888 and not caplog.records  # two are one pixel large
    assert dataset.load(0).image.shape == (480, 640, 3)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, gray in (("dog", 200), ("cat", 50)):
        (tmp_path / name).mkdir()
        for i in range(2):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.full((20, 40, 3), gray + i, np.uint8))
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_image_folder(folder):
    dataset = ImageFolder(folder)
    assert dataset.classes == ("cat", "dog") and len(dataset) == 4
    assert [(item.label, item.image[0, 0, 0]) for item in map(dataset.load, range(4))] == [(0, 50), (0, 51), (1, 200), (1, 201)]
    assert len(ImageFolder(folder, ["cat", "dog"])) == 4


@pytest.mark.parametrize(("shape", "share"), [((3, 30000, 3), 0.875), ((30000, 1, 3), 1.0), ((40, 40, 3), 1e-6)])
def test_the_central_crop_of_any_image_takes_no_more_memory_than_an_image(shape, share, monkeypatch):
    sizes, resize = [], cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda image, size, **options: sizes.append(size) or resize(image, size, **options))
    crop = center_crop(np.full(shape, 255, np.uint8), 224, share)
    assert crop.shape == (3, 224, 224) and np.allclose(crop[0], (1 - 0.406) / 0.225)
    assert max(map(np.prod, sizes)) <= 1 << 26


def test_hidden_files_are_no_images_and_folders_in_two_compositions_are_two_classes(folder):
    image = (folder / "cat/0.png").read_bytes()
    (folder / "cat/._0.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves them on other disks
    (folder / ".cache").mkdir()
    for name in ("\u00e9", "e\u0301", "o\u0308"):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(image)
    dataset = ImageFolder(folder)
    assert dataset.classes == ("cat", "dog", "e\u0301", "\u00e9", "\u00f6") and len(dataset) == 7
    dataset.check_images()


def test_a_class_that_links_to_a_missing_folder_is_not_left_out(folder):
    (folder / "cow").symlink_to("gone")
    with pytest.raises(UserError, match="cow must contain at least one JPEG or PNG image"):
        ImageFolder(folder)
    (folder / "gone").symlink_to("cow")  # links to each other
    with pytest.raises(UserError, match="cow must contain at least one JPEG or PNG image"):
        ImageFolder(folder)


def test_image_folder_errors(folder):
    with pytest.raises(UserError, match="is not a folder"):
        ImageFolder(folder / "nowhere")
    with pytest.raises(UserError, match="must contain the classes cat, cow, got cat, dog"):
        ImageFolder(folder, ["cat", "cow"])
    with pytest.raises(UserError, match="has no subfolder"):
        ImageFolder(folder / "cat")
    (folder / "cat" / "kitten").mkdir()
    with pytest.raises(UserError, match="for each of two or more classes, but has only kitten"):
        ImageFolder(folder / "cat")
    (folder / "cat" / "kitten").rmdir()
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty must contain at least one JPEG or PNG image"):
        ImageFolder(folder)


def test_classification_transforms():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255  # the central square is white, the rest black
    white = center_crop(image, 16, share=1.0)
    assert white.shape == (3, 16, 16) and white.dtype == np.float32
    np.testing.assert_allclose(white[:, :, 1:-1] - white[:, :1, 8:9], 0, atol=1e-6)
    assert white[0, 0, 8] == pytest.approx((1 - 0.406) / 0.225)
    one, two = (random_crop(image, 16, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (3, 16, 16) and one.flags.c_contiguous
    image[:, 40:] = 0  # white on the left of the middle, black on the right
    halves = [random_crop(image[:, 20:60], 16, np.random.default_rng(i), (1.0, 1.0), flip) for flip in (0, 1) for i in range(5)]
    assert all(half[0, 8, 0] > half[0, 8, -1] for half in halves[:5])
    assert all(half[0, 8, 0] < half[0, 8, -1] for half in halves[5:])
