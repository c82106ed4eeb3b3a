"""A config for a user's own data: `detofa init`."""

import os
import re
import shutil

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.coco import write_coco
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.methods.build import make_cost
from nnabla_detofa.space.costs import cost_range
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.tools import new_config


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "mine", train=20, val=6, test=6, crops_train=0, crops_val=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_written_config_passes_the_dry_run(voc, folder, capsys):
    assert main(["init", "--voc", str(voc)]) == 0
    assert "written: mine.yaml\nnext: python -m nnabla_detofa train mine.yaml --dry-run" in capsys.readouterr().out
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "dry run complete" in said and "10 classes, 20 training images" in said
    assert "digits_supernet.h5 (found)" in said


def test_a_config_for_few_images_passes_the_dry_run(folder, capsys):
    """The learning rate's warm-up is shorter than the phases."""
    write_digits(folder / "few", train=10, val=3, test=3, crops_train=0, crops_val=0)
    assert main(["init", "--voc", "few"]) == main(["train", "few.yaml", "--dry-run"]) == 0
    assert configs.load("few.yaml").optimizer.train.warmup_steps == 18


def test_every_choice_follows_from_the_data(voc, folder):
    assert main(["init", "--voc", str(voc)]) == 0
    config = configs.load("mine.yaml")
    data, hparams = config.dataloader, config.hparams
    assert (data.train, data.val, data.test, data.holdout) == (("train",), ("val",), ("test",), 0)
    assert data.classes == tuple(map(str, range(10)))
    assert (hparams.fullnet_epochs, hparams.warmup_epochs, hparams.epochs) == (60, 7, 30)
    space = ofa_resnet50(config.network.geometry, config.network.elastic_stem)
    least, most = cost_range(space, make_cost(config, 10, data.image_size).flops)
    assert len(hparams.search.budgets) == 3 and all(least < budget < most for budget in hparams.search.budgets)


def test_a_warning_about_the_data_is_shown_once(voc, folder, capsys, caplog):
    shutil.copytree(voc, "thin")
    file = folder / "thin/Annotations/train_00000.xml"
    file.write_text(re.sub("<xmin>[^<]*(.*\\s*.*\\s*)<xmax>[^<]*", r"<xmin>5\1<xmax>5", file.read_text(), count=1))
    assert main(["init", "--voc", "thin"]) == 0
    assert capsys.readouterr().out.count("train has 1 object in 1 image with a width or height of one pixel") == 1
    assert not caplog.text


def test_without_a_split_for_paths_images_are_held_out(voc, folder):
    shutil.copytree(voc, "two")
    (folder / "two/ImageSets/Main/val.txt").unlink()
    assert main(["init", "--voc", "two", "-o", "a.yaml"]) == 0
    data = configs.load("a.yaml").dataloader
    assert (data.train, data.val, data.holdout) == (("train",), (), 3)
    assert main(["train", "a.yaml", "--dry-run"]) == 0


def test_coco(voc, folder, capsys):
    write_coco(voc, folder / "mine_coco", ("train", "val", "test"))
    assert main(["init", "--coco", "mine_coco"]) == 0
    config = configs.load("mine_coco.yaml")
    assert config.dataloader_name == "coco"
    assert config.dataloader.train == configs.CocoSplit("annotations/instances_train.json", "train")
    assert main(["train", "mine_coco.yaml", "--dry-run"]) == 0
    assert "coco/test" not in capsys.readouterr().err


def test_coco_as_roboflow_exports_it(voc, folder):
    made = write_coco(voc, folder / "made", ("train", "val", "test"))
    for name, exported in (("train", "train"), ("val", "valid"), ("test", "test")):
        shutil.copytree(made / name, f"robo/{exported}")
        shutil.copy(made / f"annotations/instances_{name}.json", f"robo/{exported}/_annotations.coco.json")
    assert main(["data", "check", "--coco", "robo"]) == main(["init", "--coco", "robo"]) == 0
    assert configs.load("robo.yaml").dataloader.val == configs.CocoSplit("valid/_annotations.coco.json", "valid")


def test_a_folder_without_annotations_is_told_so(folder, capsys):
    (folder / "flat").mkdir()
    assert main(["init", "--voc", "flat"]) == 2
    assert capsys.readouterr().err.endswith("but has no folder Annotations\n")


def test_a_tree_is_copied_in_cocos_format_with_the_splits_that_it_has(voc, folder):
    shutil.copytree(voc, "two")
    (folder / "two/ImageSets/Main/val.txt").unlink()
    assert main(["data", "to-coco", "--voc", "two", "--root", "coco"]) == 0
    assert sorted(file.name for file in (folder / "coco/annotations").iterdir()) == [
        "instances_test.json",
        "instances_train.json",
    ]


def test_splits_are_written_for_a_tree_without(voc, folder, capsys):
    shutil.copytree(voc, "bare")
    shutil.rmtree("bare/ImageSets")
    for folder_name, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):  # names that a config may list too
        (folder / "bare" / folder_name / "sub").mkdir()
        (folder / "bare" / folder_name / f"train_00001{ending}").rename(f"bare/{folder_name}/sub/train_00001{ending.upper()}")
    assert main(["init", "--voc", "bare"]) == 2
    assert "has no split file; detofa init --voc FOLDER --make-splits writes them" in capsys.readouterr().err
    assert main(["init", "--voc", "bare", "--make-splits"]) == 0
    names = {name: (folder / f"bare/ImageSets/Main/{name}.txt").read_text().split() for name in ("train", "val", "test")}
    assert [len(names[name]) for name in names] == [22, 5, 5]
    assert len(set(sum(names.values(), []))) == 32
    assert main(["init", "--voc", "bare", "--make-splits", "--force"]) == 2
    assert "--make-splits is for data without splits" in capsys.readouterr().err


def test_no_splits_are_written_if_a_name_cannot_be(voc, folder):
    shutil.copytree(voc, "bare")
    shutil.rmtree("bare/ImageSets")
    (folder / "bare/Annotations/train_00001.xml").rename(os.fsdecode(b"bare/Annotations/caf\xe9.xml"))
    with pytest.raises(UserError, match="must have a name in UTF-8: rename it and its image"):
        new_config.write_splits(folder / "bare")
    assert not (folder / "bare/ImageSets").exists()


def test_splits_are_written_all_or_none(voc, folder, monkeypatch):
    shutil.copytree(voc, "bare")
    shutil.rmtree("bare/ImageSets")

    def write(file, text):
        if file.name == "test.txt":
            raise OSError(28, "No space left on device", str(file))
        file.write_text(text)

    monkeypatch.setattr(new_config, "write_text", write)
    with pytest.raises(OSError, match="No space left"):
        new_config.write_splits(folder / "bare")
    assert list((folder / "bare/ImageSets/Main").iterdir()) == []


@pytest.mark.parametrize("name", ["a\nb: c", "a # b", "a\x7fb", "{a}: 'b\"", "\u2028", "-f", "~", "é\U0001f600"])
def test_any_name_of_a_folder_is_written_as_it_is(voc, folder, name):
    shutil.copytree(voc, folder / name)
    assert main(["init", "--voc", str(folder / name), "-o", "out.yaml"]) == 0
    assert configs.load("out.yaml").dataloader.root == str(folder / name)
    assert main(["init", "--voc", str(folder / name)]) == 0
    assert not any(file.name.startswith("-") for file in folder.glob("*.yaml"))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train", "val", "test"], {"train": ["train"], "val": ["val"], "test": ["test"]}),
        (["trainval", "train", "val", "test"], {"train": ["train"], "val": ["val"], "test": ["test"]}),
        (
            ["VOC2007/trainval", "VOC2007/test", "VOC2012/trainval"],
            {"train": ["VOC2007/trainval", "VOC2012/trainval"], "test": ["VOC2007/test"]},
        ),
        (["train", "valid"], {"train": ["train"], "test": ["valid"]}),
    ],
)
def test_splits_are_chosen_by_their_names(tmp_path, names, parts):
    assert new_config.choose_splits(tmp_path, {name: [name] for name in names}, "voc").parts == parts


@pytest.mark.parametrize("names", [["trainval"], ["test"], ["all"]])
def test_a_test_split_is_needed(tmp_path, names):
    for kind, missing in (("voc", "ImageSets/Main"), ("coco", "annotations/"), ("yolo", "data.yaml")):
        with pytest.raises(UserError, match=f"must have a split to train on and one to test on.*got {names[0]}; .*{missing}"):
            new_config.choose_splits(tmp_path, {name: [name] for name in names}, kind)


def test_the_input_is_large_enough_for_the_objects():
    assert new_config.image_side(np.full(10, 0.25), small=True) == (96, 0.0)
    assert new_config.image_side(np.full(10, 0.1), small=True) == (256, 0.0)
    assert new_config.image_side(np.full(10, 0.01), small=True) == (384, 1.0)
    assert new_config.image_side(np.full(10, 0.25), small=False)[0] == 256


def test_an_existing_config_is_kept(voc, folder, capsys):
    (folder / "mine.yaml").write_text("mine")
    assert main(["init", "--voc", str(voc)]) == 2
    assert "mine.yaml exists: choose another --output, or replace it with --force" in capsys.readouterr().err
    assert (folder / "mine.yaml").read_text() == "mine"
    assert main(["init", "--voc", str(voc), "--force"]) == 0


def test_data_with_problems_is_reported_whole(voc, folder, capsys):
    shutil.copytree(voc, "broken")
    first, second, *_ = sorted((folder / "broken/Annotations").iterdir())
    first.unlink()
    assert main(["init", "--voc", "broken"]) == 2
    said = capsys.readouterr().err
    assert "broken is not ready for training: " in said and "lists all" not in said
    second.unlink()
    assert main(["init", "--voc", "broken"]) == 2
    assert "; detofa data check --voc broken lists all 2 problems" in capsys.readouterr().err
    assert not (folder / "broken.yaml").exists()
