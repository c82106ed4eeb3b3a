"""What training or evaluation leaves out of a data set is said before, in the check and in the run, with what to set."""

import io
import json
import logging
import re
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from voc_tree import Tree, box_xml

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import _Formatter
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_coco, check_config, check_folders, check_voc
from nnabla_detofa.data.coco import write_coco
from nnabla_detofa.data.image_folder import ImageFolder
from nnabla_detofa.data.sets import open_sets, read_all
from nnabla_detofa.data.voc import VOCDataset
from nnabla_detofa.tools.data_facts import data_facts
from nnabla_detofa.tools.evaluate import table
from nnabla_detofa.tools.report import markdown_row
from nnabla_detofa.training.run_log import RunLog
from nnabla_detofa.training.runner import SupernetRunner

SPLITS = ("train", "val", "test")


def tree_of(root, **objects: list[str]) -> Tree:
    """One image in each split, with these objects; a cat where nothing is said."""
    tree = Tree(root)
    for split in SPLITS:
        tree.add(split, *objects.get(split, [box_xml()])).split(split, split)
    return tree


def config_of(tree: Tree, **entries) -> configs.Config:
    splits = {split: [split] for split in SPLITS}
    data = {"voc": {"root": str(tree.root), "image_size": 64, **splits, **entries}}
    return configs.from_dict({"network": {"centernet_ofa_resnet50": {}}, "dataloader": data}, "left out")


def said(config: configs.Config, caplog) -> list[str]:
    """The warnings of a run, which are those of the check."""
    caplog.clear()
    sets = open_sets(config)
    logged = [record.getMessage() for record in caplog.records]
    assert list(sets.warnings) == logged
    return logged


GRID = [(x, y, x + 1, y + 1) for y in range(1, 29, 2) for x in range(1, 39, 2)]
CASES = {
    "more objects than max_objects": (
        {"train": [box_xml(corners=corners) for corners in GRID[:12]]},
        {"max_objects": 8},
        "dataloader.voc.max_objects=8 leaves 4 of 12 objects of train without a target, in 1 of 1 image: set it to 12",
    ),
    "more in val": (
        {"val": [box_xml(corners=corners) for corners in GRID[:3]]},
        {"max_objects": 2},
        "dataloader.voc.max_objects=2 leaves 1 of 3 objects of val without a target, in 1 of 1 image: set it to 3",
    ),
    "more objects than the default": (
        {"train": [box_xml(corners=corners) for corners in GRID[:130]]},
        {},
        "dataloader.voc.max_objects=128 leaves 2 of 130 objects of train without a target, in 1 of 1 image: set it to",
    ),
    "more objects than detections": (
        {"test": [box_xml(corners=corners) for corners in GRID[:101]]},
        {},
        "test has 1 image with more than 100 objects, but only the 100 best detections of an image count: 1 of 101 objects",
    ),
    "one pixel wide": (
        {"train": [box_xml(), box_xml(corners=(5, 5, 5, 9)), box_xml(corners=(7, 7, 7, 7))]},
        {},
        "train has 2 objects in 1 image with a width or height of one pixel",
    ),
    "one pixel high in val": (
        {"val": [box_xml(), box_xml(corners=(5, 5, 9, 5))]},
        {},
        "val has 1 object in 1 image with a width or height of one pixel",
    ),
    "in the last cell": (
        {"val": [box_xml(), box_xml(corners=(39, 5, 40, 9))]},
        {},
        "val has 1 object in 1 image in the last cell of the 16 x 16 output map",
    ),
    "in shares of the image": (
        {"train": [box_xml(), box_xml(corners=(0.1, 0.2, 0.5, 0.9)), box_xml(corners=(0, 0, 1, 1))]},
        {},
        "dropped boxes with corners in 0..1 (boxes must be in pixels: multiply by the image's width and height): 2, in 1 file",
    ),
    "a class that is only tested": (
        {"test": [box_xml(), box_xml("dog")]},
        {},
        "class dog has no object to learn from in train, and 1 in test",
    ),
    "no object in val": ({"val": []}, {}, "no image of val has an object"),
    "a class in two spellings": (
        {"train": [box_xml(), box_xml("traffic light"), box_xml("Traffic_Light")]},
        {},
        "'Traffic_Light' and 'traffic light' are different classes; if they are the same, use one spelling in all annotations",
    ),
    "other classes": (
        {"train": [box_xml(), box_xml("dog"), box_xml("dog"), box_xml("cow")]},
        {"classes": ["cat"], "ignore_other_classes": True},
        "objects of other classes in ['train'] are ignored: 2 dog, 1 cow",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_run_and_the_check_say_what_is_left_out(tmp_path, caplog, name):
    objects, entries, text = CASES[name]
    config = config_of(tree_of(tmp_path / "voc", **objects), **entries)
    assert said(config_of(tree_of(tmp_path / "sound")), caplog) == []
    logged = said(config, caplog)
    assert len(logged) == 1 and text.replace("['train']", "('train',)") in logged[0], logged
    assert open_sets(config, quiet=True).warnings == tuple(logged) and caplog.messages == logged
    report = check_config(config)
    assert report.fatal == []
    if name == "in shares of the image":
        assert len(report.warnings) == 2 and all("corners in 0..1 and is dropped" in line for line in report.warnings)
    elif name == "other classes":
        assert "ignored, of other classes      3" in str(report)
    else:
        assert any(text in line for line in report.warnings) and caplog.messages == logged  # and nothing on the screen


UNREAD = {
    "objects in a list": ("<objects>" + box_xml() + "</objects>", "got <object> in <objects>"),
    "objects in another spelling": (box_xml().replace("object>", "Object>"), "got <Object> in <annotation>"),
    "objects in a namespace": (box_xml().replace("<object>", '<object xmlns="x">'), "got <{x}object> in <annotation>"),
    "objects in an object": (box_xml(extra=box_xml()), "got <object> in <object>"),
    "a second box": (box_xml(extra="<bndbox><xmin>1</xmin></bndbox>"), "must have only one <bndbox/xmin>, got 2"),
    "a second name": (box_xml(extra="<name>dog</name>"), "must have only one <name>, got 2"),
    "a second size": ("<size><width>9</width><height>9</height></size>", "must have only one <size/height>, got 2"),
    "a second flag": (
        box_xml(extra="<difficult>0</difficult><difficult>1</difficult>"),
        "must have only one <difficult>, got 2",
    ),
    "a flag in words": (box_xml(extra="<difficult>yes</difficult>"), "<difficult> of <object> must be a number"),
    "an element in a number": (
        box_xml(corners=("1<i/>0", 3, 20, 12)),
        "<bndbox/xmin> of <object> must contain only text, got <i>",
    ),
    "an element in a name": (box_xml("cat<b>fish</b>"), "<name> of <object> must contain only text, got <b>"),
    "a number in Python's form": (box_xml(corners=("1_0", 3, 20, 12)), "<bndbox/xmin> of <object> must be a number"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_would_not_be_read_of_an_annotation_is_refused(tmp_path, name):
    content, text = UNREAD[name]
    config = config_of(tree_of(tmp_path / "voc", train=[box_xml(), content]))
    with pytest.raises(UserError, match=re.escape(text)):
        open_sets(config)
    assert len(check_config(config).fatal) == 1 and text in check_config(config).fatal[0]


@pytest.mark.parametrize(
    ("written", "difficult"),
    [
        ("", False),
        ("0", False),
        ("Unspecified", False),
        ("false", False),
        ("1", True),
        ("2", True),
        (" True ", True),
        ("1.0", True),
    ],
)
def test_a_flag_is_read_in_its_usual_forms(tmp_path, written, difficult):
    tree = tree_of(tmp_path / "voc", train=[box_xml(extra=f"<difficult>{written}</difficult>")])
    assert VOCDataset(tree.root, "train").objects(0)[2].tolist() == [difficult]


def test_the_check_without_a_config_takes_the_defaults(tmp_path):
    tree = tree_of(
        tmp_path / "voc", train=[box_xml(corners=corners) for corners in GRID[:130]], val=[box_xml(corners=(5,) * 4)]
    )
    copy = write_coco(tree.root, tmp_path / "coco", SPLITS)
    for report in (check_voc(tree.root), check_coco(copy)):
        assert any("max_objects=128 leaves 2 of 130 objects of train without" in text for text in report.warnings)
        assert any("train has 1 image with more than 100 objects" in text for text in report.warnings)
    assert any("val has 1 object in 1 image with a width" in text for text in check_voc(tree.root).warnings)


EMPTY = {
    "no object": ([], {}),
    "difficult ones alone": ([box_xml(extra="<difficult>1</difficult>")], {"train_difficult": False}),
    "ignored ones alone": ([box_xml("dog")], {"classes": ["cat"], "ignore_other_classes": True}),
    "boxes outside alone": ([box_xml(corners=(50, 5, 60, 9))], {}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_training_set_without_objects_is_refused(tmp_path, name):
    objects, entries = EMPTY[name]
    config = config_of(tree_of(tmp_path / "voc", train=objects), **entries)
    with pytest.raises(UserError, match="dataloader.voc.train must contain objects to learn from") as error:
        open_sets(config)
    assert check_config(config).fatal == [str(error.value)]


BROKEN = {
    "a test image": "test",
    "an image of val": "val",
    "a training image": "train",
}


@pytest.mark.parametrize("name", BROKEN)
def test_damage_that_only_decoding_finds_is_found_before_the_run(tmp_path, name):
    tree = tree_of(tmp_path / "voc")
    file = tree.root / f"JPEGImages/{BROKEN[name]}.jpg"
    data = file.read_bytes()
    at = data.index(b"\xff\xdb")  # the quantization tables, without which nothing can be decoded
    file.write_bytes(data[:at] + b"\xff\xfe" + data[at + 2 :].replace(b"\xff\xdb", b"\xff\xfe"))
    sets = open_sets(config_of(tree))
    with pytest.raises(UserError, match=f"{BROKEN[name]}.jpg is not a readable image"):
        read_all(sets)
    assert BROKEN[name] in data_facts_problem(config_of(tree))
    assert any(f"{BROKEN[name]}.jpg" in text for text in check_config(config_of(tree), whole=True).fatal)


def data_facts_problem(config: configs.Config) -> str:
    """What a dry run would say of the data."""
    with pytest.raises(UserError) as error:
        data_facts(config, whole=True)
    return str(error.value)


def test_the_warnings_of_a_run_are_in_its_log(tmp_path):
    """Whatever its locale: the names of classes are the user's."""
    lines, written = [], io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)

    def info(text: str, view: bool = True) -> None:
        lines.append((text, view))
        written.write(text)

    runner = SimpleNamespace(
        sets=SimpleNamespace(classes=("\u732b", "dog \ud800"), warnings=("one thing", "another")),
        log=RunLog(SimpleNamespace(info=info, file=written), rank=0),
    )
    SupernetRunner.log_data(runner)
    assert lines == [("classes: \u732b, dog \ud800\n", True), ("one thing\n", False), ("another\n", False)]
    assert written.buffer.getvalue().decode().startswith("classes: \u732b, dog \\ud800\n")


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(10, 10), (30, 20), (300, 400), (0, 5), None])
def test_a_wrong_size_decides_nothing(tmp_path, size, caplog):
    """The image is 40 x 30: the box is inside, whatever the annotation says of the image."""
    written = size and f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    tree = tree_of(tmp_path / "voc")
    for split in SPLITS:
        tree.add(split, box_xml(corners=(20, 15, 40, 30)), size=written or "")
    sets = open_sets(config_of(tree))
    assert [part.objects(0)[0].tolist() for part in (sets.train, sets.val, sets.test)] == [[[19, 14, 39, 29]]] * 3
    assert sets.test.load(0).boxes.tolist() == [[19, 14, 39, 29]]
    assert not any(word in caplog.text for word in ("outside", "without area"))
    assert len([text for text in caplog.messages if "its annotation says" in text]) == (3 if size and all(size) else 0)
    assert not any("outside" in text or "area" in text for text in check_config(config_of(tree)).warnings)


# --- Classes, empty images, encodings, other formats -------------------------------------------------------------------


def test_a_subset_of_the_classes_is_trained(tmp_path, caplog):
    both = [box_xml(), box_xml("dog", (12, 3, 20, 12))]
    tree = tree_of(tmp_path / "voc", **dict.fromkeys(SPLITS, both))
    with pytest.raises(UserError, match="object of class 'dog'; known classes are cat; .* ignore_other_classes=true"):
        open_sets(config_of(tree, classes=["cat"]))
    sets = open_sets(config_of(tree, classes=["dog"], ignore_other_classes=True))
    assert sets.classes == ("dog",) and sets.test.load(0).boxes.tolist() == [[11, 2, 19, 11]]
    copy = write_coco(tree.root, tmp_path / "coco", SPLITS)
    splits = {split: {"annotations": f"annotations/instances_{split}.json", "images": split} for split in SPLITS}
    data = {"coco": {"root": str(copy), "image_size": 64, **splits, "classes": ["dog"], "ignore_other_classes": True}}
    config = configs.from_dict({"network": {"centernet_ofa_resnet50": {}}, "dataloader": data}, "subset")
    assert [part.objects(0)[1].tolist() for part in (open_sets(config).train, open_sets(config).test)] == [[0], [0]]
    assert check_config(config).fatal == [] and check_config(config).splits[0].ignored == {"cat": 1}
    with pytest.raises(UserError, match="ignore_other_classes needs classes"):
        config_of(tree, ignore_other_classes=True)


@pytest.mark.parametrize("missing", ["a file", "the folder", "what a link names"])
def test_an_image_without_an_annotation_says_how_to_mark_it(tmp_path, missing):
    tree = tree_of(tmp_path / "voc")
    file = tree.root / "Annotations/train.xml"
    if missing == "the folder":
        file.parent.rename(tmp_path / "elsewhere")
        file.parent.mkdir()
        for split in ("val", "test"):
            shutil.copy(tmp_path / f"elsewhere/{split}.xml", file.parent)
    else:
        file.unlink()
    if missing == "what a link names":
        file.symlink_to("gone.xml")
    with pytest.raises(UserError, match="train.xml: No such file .*<annotation></annotation>.*LabelImg"):
        open_sets(config_of(tree))
    assert "<annotation></annotation>" in check_config(config_of(tree)).fatal[0]
    file.unlink(missing_ok=True)
    tree.annotate("train", "<annotation></annotation>").split("both", "train\nval")
    assert [len(open_sets(config_of(tree, train=["both"])).train.objects(i)[0]) for i in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    "declared, written, name",
    [
        ("gb2312", "gb2312", "红细胞"),
        ("GB2312", "gbk", "鎔"),  # GBK has more characters, and is often declared as GB2312
        ("gb18030", "gb18030", "红"),
        ("big5", "big5", "貓"),
        ("Shift_JIS", "cp932", "猫①"),
        ("iso-2022-jp", "iso-2022-jp", "猫"),
        ("euc-kr", "euc-kr", "고양이"),
        ("windows-1251", "cp1251", "кот"),
        ("iso-8859-1", "latin1", "Kätzchen"),
        ("UTF-16", "utf-16", "猫"),
        ("utf-8", "utf-8-sig", "猫"),
    ],
)
def test_an_annotation_is_read_in_the_encoding_that_it_declares(tmp_path, declared, written, name):
    text = f'<?xml version="1.0" encoding="{declared}"?>\n<annotation>{box_xml(name)}</annotation>'
    tree = Tree(tmp_path / "voc").add("a", box_xml()).annotate("a", text.encode(written)).split("train", "a")
    assert VOCDataset(tree.root, "train").classes == (name,) and check_voc(tree.root).splits[0].objects == {name: 1}


@pytest.mark.parametrize("declared", ["latin-99", "hex", "rot13", "gb2312"])
def test_an_encoding_that_does_not_fit_is_one_sentence(tmp_path, declared):
    text = f'<?xml version="1.0" encoding="{declared}"?><annotation>'.encode() + b"<!-- \xff\xff --></annotation>"
    tree = Tree(tmp_path / "voc").add("a", box_xml()).annotate("a", text).split("train", "a")
    with pytest.raises(UserError, match="a.xml is not well-formed XML"):
        VOCDataset(tree.root, "train")


def test_images_of_other_formats_in_a_folder_of_classes(tmp_path, caplog):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name / "more").mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / name / "a.png"), np.zeros((8, 8, 3), np.uint8))
    for place in ("train/cat/b.bmp", "train/cat/c.WEBP", "val/dog/more/d.png", "train/e.png", "train/f.bmp", "train/.g.png"):
        shutil.copy(tmp_path / "val/cat/a.png", tmp_path / place)
    only = "only JPEG and PNG files directly in this folder are used"
    texts = [
        f"{tmp_path / 'train'}: images outside the subfolders of the classes are ignored: 2",
        f"{tmp_path / 'train/cat'}: 2 images in other formats (.bmp, .webp) are ignored; {only}",
        f"{tmp_path / 'val/dog'}: 1 images in subfolders are ignored; {only}",
    ]
    for split in ("train", "val"):
        ImageFolder(tmp_path / split)
    assert caplog.messages == texts and check_folders(tmp_path, {"train": "train", "val": "val"}).warnings == texts


@pytest.mark.parametrize("name", ["a|b", "|", r"a\|b", "two\nlines"])
def test_a_bar_in_a_name_does_not_break_tables(name):
    result = {"ap50": 0.5, "ap50_per_class": {name: 0.5, "cat": None}}
    lines = table({name: result}).splitlines()
    assert len(lines) == 5 and all(len(line.replace(r"\|", "").split("|")) == 4 for line in lines), lines
    assert markdown_row(["x", name]).replace(r"\|", "").count("|") == 3


def test_json_of_the_copy_is_read_as_it_was(tmp_path):
    tree = tree_of(tmp_path / "voc", train=[box_xml("a|b")])
    content = json.loads((write_coco(tree.root, tmp_path / "coco", ["train"]) / "annotations/instances_train.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["a|b"]


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path, capsys):
    name = "cat\x1b[2J\nready for training, no warnings"
    copy = write_coco(tree_of(tmp_path / "voc").root, tmp_path / "coco", SPLITS)
    for split in SPLITS:
        file = copy / f"annotations/instances_{split}.json"
        file.write_text(file.read_text().replace('"cat"', json.dumps(name)))
    lines = str(check_coco(copy)).splitlines()
    assert "\x1b" not in "".join(lines) and lines[:-1].count("ready for training, no warnings") == 0
    assert any(r"cat\x1b[2J\nready for training, no warnings" in line for line in lines)
    assert markdown_row([name]) == r"| cat\x1b[2J ready for training, no warnings |"
    record = logging.LogRecord("", logging.WARNING, "", 0, "two\nlines of %s", (name.replace("\n", ""),), None)
    assert _Formatter("%(message)s").format(record) == "two\nlines of cat\\x1b[2Jready for training, no warnings"


def test_a_split_without_objects_is_named_by_a_check_without_a_config(tmp_path):
    tree = tree_of(tmp_path / "voc", train=[])
    copy = write_coco(tree.root, tmp_path / "coco", SPLITS)
    for report in (check_voc(tree.root), check_coco(copy)):
        assert "no image of train has an object" in report.warnings
        assert not any("no image of test" in text or "no image of val" in text for text in report.warnings)
