"""A data set with faults: every one is named at once, and what is called fatal is what training refuses."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_coco, check_config, check_voc
from nnabla_detofa.data.check_report import DataReport, Split, warn_with_defaults
from nnabla_detofa.data.coco import COCODataset, write_coco
from nnabla_detofa.data.sets import eval_batches, open_sets


@pytest.fixture
def voc(tmp_path):
    """A sound tree in VOC's layout to plant faults in."""
    return Path(shutil.copytree(tiny.digits(), tmp_path / "voc"))


@pytest.fixture
def coco(tmp_path):
    """The same in COCO's format."""
    return write_coco(tiny.digits(), tmp_path / "coco", ("train", "test"))


def config_of(root, **entries):
    data = {"root": str(root), "image_size": 64, "train": ["train"], "val": ["val"], "test": ["test"], **entries}
    return configs.from_dict({"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": data}}, "checked")


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file, pattern, new, count=1):
    text = file.read_text()
    assert re.search(pattern, text)
    file.write_text(re.sub(pattern, new, text, count=count))


def annotation(root):
    return root / "Annotations/train_00000.xml"


def test_a_sound_tree_is_counted(voc):
    report = check_voc(voc, whole=True)
    assert (report.fatal, report.warnings) == ([], [])
    assert {split.name: split.images for split in report.splits} == {"train": 16, "val": 6, "test": 6, "trainval": 22}
    train = report.splits[0]
    texts = [(voc / f"Annotations/{file.stem}.xml").read_text() for file in train.files]
    assert sum(train.objects.values()) == sum(text.count("<object>") for text in texts)
    assert train.objects["3"] == sum(text.count("<name>3</name>") for text in texts)
    assert str(report).endswith("ready for training, no warnings")


FATAL = {
    "a truncated photograph": (lambda root: halve(root / "JPEGImages/train_00001.jpg"), "train_00001.jpg is truncated"),
    "no photograph": (lambda root: (root / "JPEGImages/val_00001.jpg").unlink(), "val_00001.jpg is missing"),
    "no annotation": (lambda root: annotation(root).unlink(), "train_00000.xml: No such file"),
    "no XML": (lambda root: halve(annotation(root)), "train_00000.xml is not well-formed XML"),
    "no number": (
        lambda root: edit(annotation(root), "<xmin>[^<]*", "<xmin>left"),
        "to 1048576, got 'left'",
    ),
    "no class": (lambda root: edit(annotation(root), "<name>[^<]*", "<name>duck"), "object of class 'duck'"),
    "no split": (lambda root: (root / "ImageSets/Main/test.txt").unlink(), "split 'test'"),
    "an empty split": (lambda root: (root / "ImageSets/Main/val.txt").write_text(""), "must list at least one image"),
    "nothing to find": (
        lambda root: [edit(file, "(?s)<object>.*</object>", "", 0) for file in root.glob("Annotations/test_*.xml")],
        "must contain objects to detect",
    ),
}
WARNINGS = {
    "a box outside": (lambda root: edit(annotation(root), "<xmax>[^<]*", "<xmax>700"), "extends outside the image"),
    "a flat box": (
        lambda root: edit(annotation(root), "<xmin>[^<]*(.*\\s*.*\\s*)<xmax>[^<]*", r"<xmin>6\1<xmax>5"),
        "has no area inside the image",
    ),
    "a box of one pixel's width": (
        lambda root: edit(annotation(root), "<xmin>[^<]*(.*\\s*.*\\s*)<xmax>[^<]*", r"<xmin>5\1<xmax>5"),
        "train has 1 object in 1 image with a width or height of one pixel",
    ),
    "another size": (lambda root: edit(annotation(root), "<width>[^<]*", "<width>99"), "train_00000.jpg has 64 x 64"),
    "a split in a split": (
        lambda root: shutil.copy(root / "ImageSets/Main/trainval.txt", root / "ImageSets/Main/train.txt"),
        "splits train and val share 6 images",
    ),
    "an image twice": (
        lambda root: (root / "ImageSets/Main/train.txt").open("a").write("train_00000\n"),
        "lists train_00000 2 times",
    ),
    "an annotation alone": (
        lambda root: shutil.copy(annotation(root), root / "Annotations/alone.xml"),
        "alone.xml has no image",
    ),
    "a photograph twice": (
        lambda root: shutil.copy(root / "JPEGImages/train_00000.jpg", root / "JPEGImages/test_00000.jpg"),
        "is the same image as",
    ),
}
CLASSES = [str(digit) for digit in range(10)]


@pytest.mark.parametrize("fault", FATAL)
def test_what_is_fatal_is_what_training_refuses(voc, fault):
    plant, said = FATAL[fault]
    open_sets(config_of(voc, classes=CLASSES))
    plant(voc)
    report = check_config(config_of(voc, classes=CLASSES))
    assert any(said in text for text in report.fatal), report.fatal
    with pytest.raises(UserError):
        open_sets(config_of(voc, classes=CLASSES))


@pytest.mark.parametrize("fault", WARNINGS)
def test_with_a_warning_training_goes_on(voc, fault):
    plant, said = WARNINGS[fault]
    plant(voc)
    report = check_config(config_of(voc), whole=True)
    assert report.fatal == [] and any(said in text for text in report.warnings), report.warnings
    sets = open_sets(config_of(voc))
    assert sum(len(images) for images, *_ in eval_batches(sets, sets.train, range(len(sets.train)), 4)) == len(sets.train)


def test_all_faults_at_once(voc, capsys):
    for plant, _ in (FATAL[name] for name in ("no photograph", "no annotation", "a truncated photograph")):
        plant(voc)
    shutil.copy(voc / "Annotations/train_00002.xml", voc / "Annotations/alone.xml")
    assert main(["data", "check", "--voc", str(voc), "--splits", "train", "val"]) == 2
    out, err = capsys.readouterr()
    assert out.count("problem: ") == 3 and out.count("warning: ") == 2  # val_00001's annotation is alone now, too
    assert "3 problems that would stop training, 2 warnings" in out
    assert err.splitlines()[-1].endswith("is not ready for training")


def test_a_holdout_must_leave_images(voc):
    report = check_config(config_of(voc, val=[], holdout=16))
    assert report.fatal == ["dataloader.voc.holdout must be less than the 16 training images, got 16"]


def test_a_class_that_is_only_tested(voc):
    for file in voc.glob("Annotations/train_*.xml"):
        file.write_text(file.read_text().replace("<name>7</name>", "<name>1</name>"))
    for report in (check_config(config_of(voc)), check_voc(voc)):
        assert any(text.startswith("class 7 has no object to learn from in train, and ") for text in report.warnings)


def test_a_tree_with_one_split_lacks_another_unless_it_was_asked_for(voc, capsys):
    for file in (voc / "ImageSets/Main").iterdir():
        if file.name != "train.txt":
            file.unlink()
    assert main(["data", "check", "--voc", str(voc)]) == 0
    assert "warning: train is the only split: a config needs one to train on and one to test on" in capsys.readouterr().out
    assert main(["data", "check", "--voc", str(voc), "--splits", "train"]) == 0
    assert "ready for training, no warnings" in capsys.readouterr().out


def test_the_training_splits_of_all_years_count():
    report = DataReport("two years")
    objects = {"VOC2012/train": "a", "VOC2007/train": "b", "VOC2007/test": "abb", "VOC2012/test": "ccc"}
    report.splits += [Split(name, objects=Counter(labels)) for name, labels in objects.items()]
    warn_with_defaults(report, "dataloader.voc", lambda name: report.attempt(_unreadable))
    assert report.warnings == ["class c has no object to learn from in train, and 3 in test"]


def _unreadable():
    raise UserError("not read in this test")


def test_damage_in_the_middle_needs_a_whole_look(voc):
    file = voc / "JPEGImages/train_00003.jpg"
    data = bytearray(file.read_bytes())
    data[2:40] = bytes(38)  # the end of the file is as it should be
    file.write_bytes(data)
    assert any("train_00003.jpg" in text for text in check_voc(voc, whole=True).fatal)


def test_a_turned_photograph_has_the_size_it_is_read_with(voc):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels = np.zeros((64, 32, 3), np.uint8)
    Image.fromarray(pixels).save(voc / "JPEGImages/train_00000.jpg", exif=exif)
    said = [text for text in check_voc(voc).warnings if "train_00000" in text and "pixels" in text]
    assert said == [text for text in check_voc(voc, whole=True).warnings if "train_00000" in text and "pixels" in text]
    assert "has 32 x 64" in said[0]


# --- COCO and folders -------------------------------------------------------------------------------------------------


def change(root, function):
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))


COCO_FATAL = {
    "bbox must be four finite numbers": lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
    "image_id must be the id of a listed image": lambda c: c["annotations"][1].update(image_id=999),
    "category_id must be the id of a listed category": lambda c: c["annotations"][2].update(category_id=999),
    "must have a unique integer id": lambda c: c["annotations"][3].update(id=c["annotations"][4]["id"]),
    "none.jpg is missing": lambda c: c["images"][0].update(file_name="none.jpg"),
    "file_name must be a path below": lambda c: c["images"][1].update(file_name="../x.jpg"),
    "must have a unique id and a unique file_name": lambda c: c["images"][2].update(file_name=c["images"][3]["file_name"]),
}


def test_coco_is_counted_as_its_voc_tree(coco):
    ours, theirs = check_coco(coco), check_voc(tiny.digits(), {"train": ("train",), "test": ("test",)})
    assert (ours.fatal, ours.warnings) == ([], [])
    for one, other in zip(ours.splits, theirs.splits):
        assert (one.name, one.images, one.objects) == (other.name, other.images, other.objects)


@pytest.mark.parametrize("said", COCO_FATAL)
def test_a_fault_in_coco_is_one_the_data_set_refuses(coco, said):
    change(coco, COCO_FATAL[said])
    assert any(said in text for text in check_coco(coco).fatal)
    with pytest.raises(UserError):
        COCODataset(coco / "annotations/instances_train.json", coco / "train")


def test_all_faults_in_coco_at_once(coco, capsys):
    for function in COCO_FATAL.values():
        change(coco, function)
    change(coco, lambda content: content["annotations"][-1].update(bbox=[-3, 0, 30, 30]))
    (coco / "test/spare.jpg").write_bytes(b"")
    report = check_coco(coco)
    assert all(any(said in text for text in report.fatal) for said in COCO_FATAL)
    assert [text.partition(": ")[2] or text for text in report.warnings if "box" in text] == [
        "the box (-3, 0, 27, 30) extends outside the image and is clipped"
    ]
    assert any("contains 1 images that are not listed in instances_test.json" in text for text in report.warnings)
    assert main(["data", "check", "--coco", str(coco)]) == 2
    assert "is not ready for training" in capsys.readouterr().err


def test_folders_of_classes(tmp_path):
    root = shutil.copytree(tiny.digits() / "classification", tmp_path / "crops")
    file = tmp_path / "crops.json"
    content = {
        "args": {"runner": "pretrain"},
        "network": {"ofa_resnet50": {}},
        "dataloader": {"image_folder": {"root": str(root)}},
    }
    file.write_text(json.dumps(content))
    report = check_config(configs.load(file))
    assert report.fatal == [] and [split.images for split in report.splits] == [40, 20]
    shutil.rmtree(root / "val/7")
    halve(next(iter(sorted((root / "train/3").iterdir()))))
    report = check_config(configs.load(file))
    assert len(report.fatal) == 2 and any("class 7 must be in every split" in text for text in report.fatal)


@pytest.mark.parametrize(
    "line, message",
    [
        ([], "needs one of CONFIG, --voc FOLDER, --coco FOLDER and --yolo FOLDER"),
        (["--voc", "nowhere"], "nowhere is not a folder"),
        (["--coco", "nowhere"], "nowhere is not a folder"),
        (["--coco", "tests", "--splits", "train"], "--splits needs --voc"),
        (["--voc", "x", "a.b=1"], "overrides need a config"),
        (["-f", "none.json"], "none.json"),
    ],
)
def test_bad_input_is_one_sentence(line, message, capsys):
    assert main(["data", "check", *line]) == 2
    assert message in capsys.readouterr().err
