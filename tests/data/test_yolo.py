"""Data in YOLO's layout: the objects are those of COCO's format, variants that tools write, and what is wrong with others."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_config, check_yolo
from nnabla_detofa.data.coco import COCODataset, write_coco
from nnabla_detofa.data.content import content_digest
from nnabla_detofa.data.sets import open_sets
from nnabla_detofa.data.voc import VOCDataset
from nnabla_detofa.data.yolo import YOLODataset
from nnabla_detofa.tools.data_facts import data_facts
from nnabla_detofa.tools.new_config import write_config

NAMES = "names: [cat, dog]\n"


class Layout:
    """A dataset in YOLO's layout with images of 40 x 20 pixels (width x height)."""

    def __init__(self, root: Path, description: str = f"train: images/train\nval: images/val\ntest: images/test\n{NAMES}"):
        self.root = root
        for split in ("train", "val", "test"):
            (root / "images" / split).mkdir(parents=True)
            (root / "labels" / split).mkdir(parents=True)
            self.add(split, f"{split}_0", "0 0.5 0.5 0.25 0.5\n")
            self.add(split, f"{split}_1", "1 0.25 0.25 0.5 0.5\n0 0.7 0.7 0.2 0.2\n")
        self.describe(description)

    def describe(self, text: str) -> "Layout":
        (self.root / "data.yaml").write_text(text)
        return self

    def add(self, split: str, name: str, labels: str | None) -> "Layout":
        rng = np.random.default_rng(sum(name.encode()))
        cv2.imwrite(str(self.root / "images" / split / f"{name}.png"), rng.integers(0, 255, (20, 40, 3), np.uint8))
        if labels is not None:
            (self.root / "labels" / split / f"{name}.txt").write_text(labels)
        return self

    def label(self, text: str) -> "Layout":
        """Replace the labels of the first training image."""
        (self.root / "labels" / "train" / "train_0.txt").write_text(text)
        return self


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "set")


def config_of(layout: Layout, **settings) -> configs.Config:
    data = {"root": str(layout.root), "image_size": 64} | settings
    return configs.from_dict({"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"yolo": data}}, "yolo")


def objects(dataset) -> list[list]:
    return [[part.tolist() for part in dataset.objects(index)] for index in range(len(dataset))]


def test_the_objects_are_those_of_the_same_data_in_coco_format(tmp_path):
    """Boxes of the digits dataset, written with six digits as tools do, and as mapping of names."""
    voc = VOCDataset(tiny.digits(), "train")
    root = write_coco(tiny.digits(), tmp_path / "coco", ["train"])
    coco = COCODataset(root / "annotations/instances_train.json", root / "train", voc.classes)
    (tmp_path / "yolo/images").mkdir(parents=True)
    (tmp_path / "yolo/labels").mkdir()
    for index, file in enumerate(voc.files):
        shutil.copy(file, tmp_path / "yolo/images")
        boxes, labels, _ = coco.objects(index)
        height, width = coco.size(index)
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height), (boxes[:, 2:] - boxes[:, :2]) / (width, height)
        lines = [f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, (x, y), (w, h) in zip(labels, centers, sides)]
        (tmp_path / "yolo/labels" / f"{file.stem}.txt").write_text("".join(lines))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(voc.classes))
    (tmp_path / "yolo/data.yaml").write_text(f"train: images\nnames:\n{names}")
    yolo = YOLODataset(tmp_path / "yolo", "train")
    assert yolo.classes == coco.classes and len(yolo) == len(coco) > 0
    for index in range(len(coco)):
        found, expected = yolo.objects(index), coco.objects(index)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
        np.testing.assert_array_equal(found[1], expected[1])
        assert not found[2].any()
        np.testing.assert_allclose(yolo.areas(index), coco.areas(index), rtol=1e-3)
        np.testing.assert_array_equal(yolo.load(index).image, coco.load(index).image)


def test_boxes_in_pixels(layout):
    dataset = YOLODataset(layout.root, "train")
    assert objects(dataset)[0] == [[[15, 5, 25, 15]], [0], [False]]
    assert objects(dataset)[1][0][0] == [0, 0, 20, 10]
    assert dataset.image_ids == ("images/train/train_0.png", "images/train/train_1.png") and dataset.size(0) == (20, 40)


def test_a_polygon_is_its_box(layout):
    layout.label("1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 1\n")
    assert objects(YOLODataset(layout.root, "train"))[0] == [[[10, 5, 30, 20]], [1], [False]]


@pytest.mark.parametrize(
    "description",
    [
        f"path: .\ntrain: images/train\n{NAMES}",
        f"path: ../datasets/set\ntrain: ../images/train\nnc: 2\n{NAMES}",  # as Roboflow writes it
        f"train: train.txt\n{NAMES}",
        f"train: [images/train]\n{NAMES}roboflow: {{project: x}}\nflip_idx: [0, 2, 1]\ndownload: |\n  import x\n",
        "train: images/train\nnames: {1: dog, 0: cat}\n",
    ],
)
def test_descriptions_of_several_tools(layout, description):
    (layout.root / "train.txt").write_text("./images/train/train_0.png\n\nimages/train/train_1.png\n")
    expected = objects(YOLODataset(layout.root, "train"))
    dataset = YOLODataset(layout.describe(description).root, "train")
    assert dataset.classes == ("cat", "dog") and objects(dataset) == expected


@pytest.mark.parametrize(
    "train, listed",
    [
        ("{root}/images/train", ""),
        ("[{root}/images/train]", ""),
        ("{root}/list.txt", "images/train/train_0.png\nimages/train/train_1.png"),
        ("list.txt", "{root}/images/train/train_0.png\n {root}/images/train/train_1.png \r\n"),
        ("list.txt", "{link}/images/train/train_0.png\n./images/train/train_1.png"),
        ("images/list.txt", "{root}/images/train/train_0.png\ntrain/train_1.png"),
    ],
)
def test_absolute_names_inside_the_folder_of_the_dataset_are_found(layout, train, listed):
    expected = objects(YOLODataset(layout.root, "train"))
    link = layout.root.with_name("link")
    link.symlink_to(layout.root)
    places = {"root": layout.root, "link": link}
    (layout.root / "list.txt").write_text(listed.format(**places))
    shutil.copy(layout.root / "list.txt", layout.root / "images/list.txt")
    layout.describe(f"train: {train.format(**places)}\n{NAMES}")
    assert objects(YOLODataset(link, "train")) == expected and check_yolo(link, {"train": "train"}).fatal == []


@pytest.mark.parametrize("name", ["/etc/passwd", "{root}/../other.png", "{root}/gone.png", "{root}x/images/train/train_0.png"])
def test_absolute_names_outside_the_dataset_are_rejected(layout, name):
    (layout.root / "list.txt").write_text(name.format(root=layout.root))
    layout.describe(f"train: list.txt\n{NAMES}")
    with pytest.raises(UserError, match="is missing from the images below .*set, but .*list.txt lists it"):
        YOLODataset(layout.root, "train")


def test_labels_next_to_images(tmp_path):
    layout = Layout(tmp_path / "set")
    shutil.copytree(layout.root / "images/train", layout.root / "flat")
    shutil.copytree(layout.root / "labels/train", layout.root / "flat", dirs_exist_ok=True)
    expected = objects(YOLODataset(layout.root, "train"))
    for text in ("train: flat", "path: flat\ntrain: ."):
        assert objects(YOLODataset(layout.describe(f"{text}\n{NAMES}").root, "train")) == expected


def test_images_without_labels_have_no_objects(layout):
    layout.add("train", "train_2", None).add("train", "train_3", "")
    dataset = YOLODataset(layout.root, "train")
    assert [len(dataset.objects(index)[0]) for index in range(4)] == [1, 2, 0, 0]
    assert check_yolo(layout.root).splits[0].empty == 2


def test_clipped_flat_and_repeated_boxes(layout, caplog):
    # A side that is outside by less than half a pixel is rounding, and not worth a warning.
    layout.label("0 0.9 0.5 0.4 0.5\n0 0.5 0.5 0 0.5\n1 0.5 0.5 1.0001 1\n1 0.5 0.5 1.0001 1\n")
    dataset = YOLODataset(layout.root, "train")
    assert objects(dataset)[0] == [[[28, 5, 40, 15], [0, 0, 40, 20]], [0, 1], [False, False]]
    for text in ("boxes that extend outside their images: 1", "boxes without area: 1", "each of which is used once: 1"):
        assert text in caplog.text
    report = check_yolo(layout.root)
    assert not report.fatal and len(report.warnings) == 3 and report.splits[0].objects == {"cat": 2, "dog": 2}


def test_a_tiny_box_is_not_taken_for_fractions_of_pixels(layout):
    layout.label("0 0.0125 0.025 0.02 0.04\n")
    assert len(YOLODataset(layout.root, "train").objects(0)[0]) == 1 and not check_yolo(layout.root).warnings


WRONG_LABELS = {
    "2 0.5 0.5 0.1 0.1": "the class must be an integer from 0 to 1, got 2",
    "cat 0.5 0.5 0.1 0.1": "the class must be an integer from 0 to 1, got cat",
    "-1 0.5 0.5 0.1 0.1": "the class must be an integer from 0 to 1, got -1",
    "0 0.5 0.5 0.1": "got 3 numbers after the class",
    "0 0.5 0.5 0.1 0.1 0.3": "got 5 numbers after the class",
    "0": "got 0 numbers after the class",
    "0 20 10 4 4": r"fractions of the image's width and height in \[0, 1\], got 20",
    "0 0.5 0.5 nan 0.1": "got nan",
    "0 0.5 0.5 inf 0.1": "got inf",
    "0 0.5 x 0.1 0.1": "got x",
    "0 0.5 0.5 -0.005 0.1": "width and height must not be negative",
}


@pytest.mark.parametrize("line", WRONG_LABELS)
def test_wrong_labels_are_named_by_file_and_line(layout, line):
    layout.label(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(UserError, match=rf"labels/train/train_0.txt line 3:? .*{WRONG_LABELS[line]}") as error:
        YOLODataset(layout.root, "train")
    report = check_yolo(layout.root)
    assert report.fatal == [str(error.value)] and report.splits[0].objects == {"cat": 2, "dog": 1}


WRONG_DESCRIPTIONS = {
    "train: images/train\n": "names must be a list of class names",
    "train: images/train\nnames: []\n": "names must be a list of class names",
    "train: images/train\nnames: [cat, cat]\n": "names must be unique strings, got 'cat' for class 1",
    "train: images/train\nnames: {0: cat, 2: dog}\n": "the keys of names must be 0 to 1",
    f"train: images/train\nnc: 3\n{NAMES}": "nc must be the number of names, 2, got 3",
    f"val: images/val\n{NAMES}": r"split 'train' not found in .*data.yaml \(found: val\)",
    f"train: images/nothing\n{NAMES}": "train in .*data.yaml must be an existing folder or file .* got 'images/nothing'",
    f"train: /etc\n{NAMES}": "must be an existing folder or file inside .* got '/etc'",
    f"train: images/train\nkpt_shape: [17, 2]\n{NAMES}": "key points .kpt_shape. are not supported",
    f"train: 3\n{NAMES}": "train in .*data.yaml must be a path or a list of paths, got 3",
    f"train: [images/train, 3]\n{NAMES}": "train in .*data.yaml must be a path or a list of paths, got 3",
    f"train: list.txt\n{NAMES}": "images/gone.png is missing, but .*list.txt lists it",
    f"train: empty\n{NAMES}": "split train of .*data.yaml must contain at least one JPEG or PNG image",
    f"train: bare\n{NAMES}": "no label file for any image; the labels of .*bare/a.png must be in .*bare/a.txt",
    "[1, 2": "data.yaml cannot be parsed",
    "3": "must contain the keys train, val and names, got 3",
}


@pytest.mark.parametrize("text", WRONG_DESCRIPTIONS)
def test_wrong_descriptions(layout, text):
    (layout.root / "list.txt").write_text("images/gone.png\n")
    (layout.root / "empty").mkdir()
    (layout.root / "bare").mkdir()
    shutil.copy(layout.root / "images/train/train_0.png", layout.root / "bare/a.png")
    layout.describe(text)
    with pytest.raises(UserError, match=WRONG_DESCRIPTIONS[text]) as error:
        YOLODataset(layout.root, "train")
    try:
        report = check_yolo(layout.root, {"train": "train"})
    except UserError as raised:  # without a description there is nothing to check
        assert str(raised) == str(error.value)
    else:
        assert str(error.value) in report.fatal


UNUSED = [
    "terms: terms.txt",
    "terms: folder.txt",
    "photo: images/train/train_0.png",
    *(f"{key}: {'x' * 300}" for key in ("info", "path")),
]


@pytest.mark.parametrize("line", UNUSED)
def test_keys_that_name_no_images_are_ignored(layout, line):
    (layout.root / "terms.txt").write_text("All rights reserved.\n")
    (layout.root / "folder.txt").write_text("images/train\n")
    layout.describe(f"train: images/train\n{line}\n{NAMES}")
    assert check_yolo(layout.root).fatal == [] and len(YOLODataset(layout.root, "train"))


def test_a_long_text_for_a_split_is_named(layout):
    layout.describe(f"train: {'x' * 300}\n{NAMES}")
    with pytest.raises(UserError, match="train in .*data.yaml must be an existing folder or file inside .* got 'xxx"):
        YOLODataset(layout.root, "train")


def test_no_description(tmp_path):
    with pytest.raises(UserError, match="is not a folder; it must contain a dataset in YOLO's layout"):
        YOLODataset(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="data.yaml"):
        YOLODataset(tmp_path, "train")


def test_classes_of_a_config(layout, caplog):
    with pytest.raises(UserError, match="has the class 'dog'; known classes are cat; .* ignore_other_classes=true") as error:
        YOLODataset(layout.root, "train", ["cat"])
    assert check_yolo(layout.root, classes=["cat"]).fatal[0].split(";")[0] == str(error.value).split(";")[0]
    dataset = YOLODataset(layout.root, "train", ["cat"], ignore_others=True)
    assert objects(dataset)[1][1] == [0] and "objects of other classes are ignored: 1 dog" in caplog.text
    assert objects(YOLODataset(layout.root, "train", ["dog", "cat"]))[1][1] == [0, 1]
    report = check_config(config_of(layout, classes=["cat"], ignore_other_classes=True))
    assert not report.fatal and report.splits[0].ignored == {"dog": 1}


def test_a_rotated_image_is_noted(layout, caplog):
    file = layout.root / "images/train/train_0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    (layout.root / "images/train/train_0.png").unlink()
    Image.new("RGB", (40, 20)).save(file, exif=exif)
    dataset = YOLODataset(layout.root, "train")
    assert dataset.size(0) == (40, 20) and objects(dataset)[0][0] == [[7.5, 10, 12.5, 30]]
    assert "Exif tag Orientation 6" in caplog.text
    assert any("Exif tag Orientation 6" in text for text in check_yolo(layout.root).warnings)


def test_a_config_opens_the_data_and_the_check_accepts_it(layout, capsys):
    config = config_of(layout)
    sets = open_sets(config)
    assert [len(part) for part in (sets.train, sets.val, sets.test)] == [2, 2, 2] and sets.classes == ("cat", "dog")
    report = check_config(config)
    assert not report.fatal and [split.name for split in report.splits] == ["train", "val", "test"]
    held = config_of(layout, val=None, holdout=1, test="val")
    assert len(open_sets(held).train) == len(open_sets(held).val) == 1 and data_facts(held).train == 1
    assert main(["data", "check", "--yolo", str(layout.root)]) == 0
    assert "ready for training, no warnings" in capsys.readouterr().out
    layout.label("0 2 2 2 2\n")
    assert main(["data", "check", "--yolo", str(layout.root)]) == 2
    out, err = capsys.readouterr()
    assert "train_0.txt line 1" in out and "is not ready for training" in err
    layout.label("0 0.5 0.5 0.25 0.5\n")
    layout.describe(f"train: images/train\n{NAMES}")
    assert main(["data", "check", "--yolo", str(layout.root)]) == 0
    assert "train is the only split" in capsys.readouterr().out


def test_the_check_finds_damage_and_what_is_not_used(layout):
    (layout.root / "labels/val/alone.txt").write_text("")
    file = layout.root / "images/test/test_0.png"
    file.write_bytes(file.read_bytes()[:-20])
    shutil.copy(layout.root / "images/train/train_1.png", layout.root / "images/val/val_1.png")
    report = check_yolo(layout.root, whole=True)
    assert len(report.fatal) == 1 and "test_0.png is truncated" in report.fatal[0]
    assert any("contains 1 label files without an image, such as alone.txt" in text for text in report.warnings)
    assert any("val_1.png in val is the same image as" in text for text in report.warnings)


def test_the_digest_changes_with_labels_and_images(layout, tmp_path):
    digests = []
    for number, change in enumerate(
        (lambda: None, lambda: layout.label("0 0.5 0.5 0.25 0.25\n"), lambda: layout.add("test", "new", None))
    ):
        change()
        copy = shutil.copytree(layout.root, tmp_path / f"copy_{number}")  # a digest is computed once per folder
        digests.append(content_digest(config_of(layout, root=str(copy)).dataloader))
    assert None not in digests and len(set(digests)) == 3


def test_init_writes_a_config(tmp_path):
    layout = Layout(tmp_path / "set")
    text, report = write_config("yolo", layout.root)
    (tmp_path / "a.yaml").write_text(text)
    config = configs.load(tmp_path / "a.yaml")
    assert config.dataloader_name == "yolo" and config.dataloader.val == "val" and not report.fatal
    text, _ = write_config("yolo", layout.describe(f"train: images/train\nval: images/val\n{NAMES}").root)
    (tmp_path / "b.yaml").write_text(text)
    config = configs.load(tmp_path / "b.yaml")
    assert (config.dataloader.val, config.dataloader.test) == (None, "val") and config.dataloader.holdout == 1


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a", "a (1)", "a 1"], "images/train/a.png\nimages/train/a (1).png\nimages/train/a 1.png\n"),
        ([" a", "b "], "images/train/ a.png\r\n  images/train/b .png  \r\n\r\n"),
        (["x\u2028y", "x\x0cy", "x\u3000"], "images/train/x\u2028y.png\nimages/train/x\x0cy.png\nimages/train/x\u3000.png"),
        (["x\\y", "%s {} \"'"], "\ufeffimages/train/x\\y.png\n./images/train/%s {} \"'.png\n"),
    ],
)
def test_a_line_of_a_list_is_a_name(layout, names, text):
    for name in names:
        layout.add("train", name, "0 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.5 0.25\n")  # test has both classes, too
    (layout.root / "list.txt").write_bytes(text.encode())
    layout.describe(f"train: list.txt\nval: images/val\ntest: images/test\n{NAMES}")
    assert YOLODataset(layout.root, "train").image_ids == tuple(f"images/train/{name}.png" for name in names)
    report = check_yolo(layout.root)
    assert report.fatal == report.warnings == [] and report.splits[0].images == len(names)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("caf\u00e9.png", "cafe\u0301.txt"),
        ("cafe\u0301.png", "caf\u00e9.txt"),
        ("a.b.png", "a.b.TXT"),
        ("\u00e9/x.png", "e\u0301/x.txt"),
    ],
)
def test_labels_whose_name_is_composed_or_ends_otherwise_are_not_left_out(layout, image, labels):
    for folder, name, source in (("images", image, "train_1.png"), ("labels", labels, "train_1.txt")):
        place = layout.root / folder / "train" / name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(layout.root / folder / "train" / source, place)
    dataset = YOLODataset(layout.root, "train")
    assert len(dataset.objects(dataset.image_ids.index(f"images/train/{image}"))[0]) == 2
    assert check_yolo(layout.root, {"train": "train"}).splits[0].empty == 0


def test_spaces_at_the_ends_of_a_name_belong_to_it(layout):
    folder = layout.root / "images" / "train"
    (folder / " x.png").write_bytes((folder / "train_0.png").read_bytes())
    (folder / " x.png").rename(layout.root / " x.png")
    (layout.root / "x.png").write_bytes((folder / "train_1.png").read_bytes())
    (layout.root / "x.txt").write_text("")
    (layout.root / " x.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (layout.root / "list.txt").write_text(" x.png\nx.png\n")
    layout.describe(f"train: list.txt\nval: images/val\ntest: images/test\n{NAMES}")
    assert YOLODataset(layout.root, "train").image_ids == (" x.png", "x.png")


def test_label_files_of_images_of_other_splits_have_an_image(layout):
    """All splits are lists of images of one folder; an image that no split lists has labels too."""
    lines = [f"./images/train/{name}.png\n" for name in ("train_0", "train_1", "c", "d")]
    layout.add("train", "c", "0 0.5 0.5 0.25 0.5\n").add("train", "d", "1 0.5 0.5 0.25 0.5\n").add("train", "e", "")
    for split, text in {"train": lines[0] + lines[1], "val": lines[2], "test": lines[3]}.items():
        (layout.root / f"{split}.txt").write_text(text)
    layout.describe(f"train: train.txt\nval: val.txt\ntest: test.txt\n{NAMES}")
    assert check_yolo(layout.root).warnings == []
    (layout.root / "labels/train/gone.txt").write_text("")
    (warning,) = check_yolo(layout.root).warnings
    assert "labels/train contains 1 label files without an image, such as gone.txt" in warning


def test_images_in_other_formats_are_not_left_out_without_a_word(layout, caplog):
    image = (layout.root / "images/train/train_0.png").read_bytes()
    for name in ("x.BMP", "y.webp", "y.tif", "notes.doc"):
        (layout.root / "images/train" / name).write_bytes(image)
    (layout.root / "labels/train/y.txt").write_text("")
    text = "images/train has 3 images in other formats (.bmp, .tif, .webp), which are ignored; only JPEG and PNG files are used"
    (warning,) = check_yolo(layout.root, {"train": "train"}).warnings
    assert text in warning and len(YOLODataset(layout.root, "train")) == 2 and text in caplog.text


@pytest.mark.parametrize("part", ["image", "labels", "labels that link to themselves"])
def test_a_link_to_nothing_is_an_error_and_no_absence(layout, part):
    file = layout.root / ("images/train/train_0.png" if part == "image" else "labels/train/train_0.txt")
    file.unlink()
    file.symlink_to(file.name if part.endswith("themselves") else "gone")
    with pytest.raises(UserError, match=f"cannot read the {part.split()[0]} .*{file.name}: "):
        YOLODataset(layout.root, "train")
    assert any(file.name in problem for problem in check_yolo(layout.root).fatal)


def test_images_in_linked_folders_are_found_once(layout, tmp_path):
    """Links that form loops end."""
    outside = tmp_path / "camera"
    outside.mkdir()
    (outside / "x.png").write_bytes((layout.root / "images/train/train_0.png").read_bytes())
    (outside / "self").symlink_to(outside)
    train = layout.root / "images/train"
    for name, target in {"linked": outside, "linked too": outside, "up": ".", "inner again": "inner"}.items():
        (train / name).symlink_to(target)
    (train / "inner").mkdir()
    (train / "inner" / "y.png").write_bytes((outside / "x.png").read_bytes())
    found = [name.removeprefix("images/train/") for name in YOLODataset(layout.root, "train").image_ids]
    assert found == ["inner/y.png", "linked/x.png", "train_0.png", "train_1.png"]
