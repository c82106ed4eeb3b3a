"""Names are names: the check, training and the copy to COCO find the same files by what a split lists."""

import json
import shutil
from unicodedata import normalize

import pytest
from voc_tree import Tree, box_xml

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_coco, check_voc
from nnabla_detofa.data.coco import COCODataset, write_coco
from nnabla_detofa.data.images import EXTENSIONS
from nnabla_detofa.data.names import Listing
from nnabla_detofa.data.voc import VOCDataset

NFC, NFD = normalize("NFC", "Mädchen é"), normalize("NFD", "Mädchen é")


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path / "voc")


def add(tree: Tree, *names: str) -> Tree:
    for name in names:
        for part in ("JPEGImages", "Annotations"):
            (tree.root / part / name).parent.mkdir(parents=True, exist_ok=True)
        tree.add(name, box_xml())
    return tree


@pytest.mark.parametrize(
    "names, text",
    [
        (["image", "image (1)", "image (2)"], "image\nimage (1)\nimage (2)\n"),
        (["a 1", "a", "a -1"], "a 1\na\na -1\n"),  # a whole line that names an image is that name
        (["a", "b c", "d"], "a  1\r\nb c -1\r\nd\t0\r\n"),
        (["b c", "a b c"], "  b c  \n\n a b c 1"),
        (["a\u2028b", "c\u00a0d", "e\u3000"], "a\u2028b\nc\u00a0d\ne\u3000\n"),
        (["x.y", "x", "2007.000 1"], "x.y\nx\n2007.000 1"),
        (["cam1/x", "cam2/x", "cam1/in/x y"], "cam1/x\ncam2/x 1\ncam1/in/x y\n"),
        (["x", "y"], "./x\ny\n"),
        ([NFC], NFD),
        ([NFD], NFC),
        ([f"{NFD}/{NFC} (1)"], f"{NFC}/{NFD} (1)"),
    ],
)
def test_a_line_of_a_split_is_a_name(tree, tmp_path, caplog, names, text):
    add(tree, *names).split("train", text)
    dataset = VOCDataset(tree.root, "train")
    assert list(dataset.image_ids) == names and [len(dataset.objects(i)[0]) for i in range(len(names))] == [1] * len(names)
    report = check_voc(tree.root, whole=True)
    assert report.fatal == [] and report.splits[0].images == len(names)
    assert [said for said in report.warnings if "same image" not in said] == [] and not caplog.records
    copy = write_coco(tree.root, tmp_path / "coco", ["train"])
    copied = COCODataset(copy / "annotations/instances_train.json", copy / "train")
    assert copied.image_ids == tuple(f"{name}.jpg" for name in names)
    assert check_coco(copy).warnings == []


def test_an_absolute_name_inside_the_folder_of_the_images_is_found_alike(tree, tmp_path):
    inside = tree.root / "JPEGImages"
    add(tree, "a", "cam/b").split("train", f"{inside}/a\n {inside}/cam/b 1\n")
    assert VOCDataset(tree.root, "train").image_ids == ("a", "cam/b") and check_voc(tree.root).fatal == []
    copy = write_coco(tree.root, tmp_path / "coco", ["train"])
    assert COCODataset(copy / "annotations/instances_train.json", copy / "train").image_ids == ("a.jpg", "cam/b.jpg")


@pytest.mark.parametrize("name", ["/etc/passwd", "../JPEGImages/a", "cam/../../a", "..", "b", "a/b", "a.jpg", "a\0", "a 2"])
def test_a_name_that_leads_out_or_nowhere_is_refused_alike(tree, tmp_path, name):
    add(tree, "a").split("train", f"a\n{name}\n")
    with pytest.raises(UserError, match="is missing") as error:
        VOCDataset(tree.root, "train")
    report = check_voc(tree.root)
    assert report.fatal == [str(error.value)] and report.splits[0].images == 2
    with pytest.raises(UserError, match="is missing"):
        write_coco(tree.root, tmp_path / "coco", ["train"])


def test_an_image_is_counted_once_however_it_is_named(tree, caplog):
    add(tree, "a", "b").split("train", "a\n./a\nb\n a 1\n")
    assert VOCDataset(tree.root, "train").image_ids == ("a", "b") and "lists 2 images again" in caplog.text
    assert any("lists a 3 times; it is used once" in text for text in check_voc(tree.root).warnings)


def test_two_files_that_differ_in_composition_are_two(tmp_path):
    for name in (NFC, NFD):
        (tmp_path / f"{name}.png").write_bytes(b"")
    found = Listing(tmp_path, EXTENSIONS)
    assert [found.find(name).stem for name in (NFC, NFD)] == [NFC, NFD]


def test_the_annotations_may_be_composed_otherwise(tree):
    add(tree, NFD).split("train", NFC)
    (tree.root / f"Annotations/{NFD}.xml").rename(tree.root / f"Annotations/{NFC}.xml")
    assert len(VOCDataset(tree.root, "train").objects(0)[0]) == 1 and check_voc(tree.root).warnings == []


def test_classes_are_compared_as_they_are_read(tree, tmp_path):
    tree.add("a", box_xml(NFC)).add("b", box_xml(NFD)).split("train", "a\nb")
    assert VOCDataset(tree.root, "train").classes == (NFC,)
    assert VOCDataset(tree.root, "train", [NFD]).objects(1)[1].tolist() == [0]
    copy = write_coco(tree.root, tmp_path / "coco", ["train"])
    assert COCODataset(copy / "annotations/instances_train.json", copy / "train", [NFD]).objects(1)[1].tolist() == [0]


@pytest.mark.parametrize("splits", [["train", "train"], ["2007/train", "2007_train"], ["annotations"]])
def test_two_splits_do_not_share_a_folder_of_the_copy(tree, tmp_path, splits):
    for split in splits:
        place = tree.root / split.rpartition("/")[0] if "/" in split else tree.root
        if place != tree.root:
            shutil.copytree(add(Tree(tmp_path / "other"), "a").split("train", "a").root, place)
        else:
            add(tree, "a").split(split, "a")
    with pytest.raises(UserError, match="--splits must have distinct folders"):
        write_coco(tree.root, tmp_path / "coco", splits)
    assert not (tmp_path / "coco").exists()


# --- Counts compare names ---------------------------------------------------------------------------------------------


def coco_of(root, listed: dict[str, list[str]], folders: dict[str, str]):
    """annotations/instances_<split>.json for images that are there already."""
    (root / "annotations").mkdir()
    for split, names in listed.items():
        content = {
            "images": [{"id": number, "file_name": name, "height": 30, "width": 40} for number, name in enumerate(names)],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        assert (root / folders[split]).is_dir()


@pytest.mark.parametrize(
    "files, listed, folder, unlisted",
    [
        (["a", "b", "c"], {"train": ["a.jpg"], "val": ["b.jpg", "c.jpg"]}, "images", 0),
        (["a", "b", "c", "d"], {"train": ["a.jpg"], "val": ["b.jpg", "a.jpg"]}, "images", 2),
        (["in/a", "in/b"], {"train": ["in/a.jpg", "in/b.jpg"]}, "images", 0),
        (["in/a", "in/b", "c"], {"train": ["in/a.jpg", "c.jpg"]}, "images", 1),
        (["a", "b", "c"], {"train": ["a.jpg", "none.jpg"]}, "images", 2),
    ],
)
def test_images_that_are_not_listed_are_counted_by_name(tmp_path, files, listed, folder, unlisted):
    from nnabla_detofa.config import CocoSplit

    tree = Tree(tmp_path / "voc")
    add(tree, *files)
    (tree.root / "JPEGImages").rename(tmp_path / folder)
    coco_of(tmp_path, listed, dict.fromkeys(listed, folder))
    splits = {split: CocoSplit(f"annotations/instances_{split}.json", folder) for split in listed}
    texts = [text for text in check_coco(tmp_path, splits).warnings if "not list" in text]
    assert len(texts) == bool(unlisted) and all(f"contains {unlisted} images" in text for text in texts)
