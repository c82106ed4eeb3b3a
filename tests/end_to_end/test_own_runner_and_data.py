"""A runner and a reader of data that a config names by their import paths run, and errors in their names are one sentence."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common import checked
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.check import check_config
from nnabla_detofa.data.content import content_digest, forget_digests
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.own import open_own
from nnabla_detofa.data.sets import open_sets

MODULE = '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnabla_detofa.config import OwnData
from nnabla_detofa.data.dataset import DetectionDataset
from nnabla_detofa.methods.baselines import BaselineSearcher


class Marking(BaselineSearcher):
    """The baseline that trains the largest path alone, with a file of its own."""

    method = "fullnet"

    def train_fullnet(self, space):
        super().train_fullnet(space)
        (self.folder / "mark.txt").write_text("trained")


@dataclass(frozen=True)
class Squares(OwnData):
    """One box of the same size in every image of VOC's folder.

    Attributes:
        side: of the box in pixels.
    """

    side: int = 20
    wrong: str = ""

    def open(self):
        parts = [self.part(name) for name in ("train", "val", "test")]
        if self.wrong == "count":
            return parts[0]
        if self.wrong == "classes":
            parts[2].classes = ("circle",)
        if self.wrong == "label":
            parts[0].objects = lambda index: (np.zeros((1, 4)), np.array([1]), np.zeros(1, bool))
        if self.wrong == "type":
            parts[2] = "test"
        return (parts[0], None if self.holdout and not self.wrong else parts[1], parts[2])

    def part(self, name):
        files = sorted(Path(self.root, "JPEGImages").glob(f"{name}_*"))
        box = np.array([[8, 8, 8 + self.side, 8 + self.side]], np.float32), np.array([0]), np.zeros(1, bool)
        return DetectionDataset(("square",), files, [file.stem for file in files], [(64, 64)] * len(files), [box] * len(files))


class Nothing:
    pass
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def digits(tmp_path) -> Path:
    return write_digits(tmp_path / "digits", train=8, val=4, test=4, image_size=64, crops_train=0, crops_val=0)


def content(runner: str = "detofa", data: str = "mine:Squares", **settings) -> dict:
    config = detofa_config("digits")
    config["args"] |= {"runner": runner, "evaluation_processes": 1}
    config["dataloader"] = {data: {"root": "digits", "image_size": 64} | settings}
    return config


@pytest.mark.thorough
def test_both_run_from_a_config(digits, capsys):
    Path("mine.json").write_text(json.dumps(content("mine:Marking", side=24)))
    for command in (["data", "check", "mine.json"], ["train", "mine.json", "--dry-run"], ["train", "mine.json", "-o", "run"]):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert Path("run/mark.txt").read_text() == "trained"
    result = json.loads(Path("run/summary.json").read_text())
    assert list(result["fullnet"]["ap50_per_class"]) == ["square"] and result["subnets"] == []
    for command in (["inspect", "run"], ["evaluate", "run", "--detector", "fullnet"], ["doctor", "mine.json"]):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "runner mine:Marking, finished" in capsys.readouterr().out


def test_a_reader_is_checked_and_digested_like_ours(digits):
    config = configs.from_dict(content(side=24), "mine")
    assert configs.from_dict(config.to_dict(), "mine") == config
    report = check_config(config, whole=True)
    assert [(split.name, split.images, dict(split.objects)) for split in report.splits] == [
        ("train", 8, {"square": 8}), ("val", 4, {"square": 4}), ("test", 4, {"square": 4})]  # fmt: skip
    assert not report.fatal
    before = content_digest(config.dataloader)
    assert before and before != content_digest(replace(config.dataloader, side=10))
    next(iter((digits / "JPEGImages").glob("test_*"))).write_bytes(b"broken")
    forget_digests()
    assert content_digest(config.dataloader) != before
    assert len(check_config(config).fatal) == 1


def test_training_images_are_held_out_of_a_reader(digits):
    sets = open_sets(configs.from_dict(content(holdout=3), "mine"), 4)
    assert (len(sets.train), len(sets.val), len(sets.test)) == (5, 3, 4) and sets.classes == ("square",)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("count", "Squares.open must return the datasets of train, val and test, got DetectionDataset"),
        ("classes", "Squares.open must return the same classes for all splits: train has square, test circle"),
        ("label", "labels of train_.* in train must be indices of the 1 classes, got 1"),
        ("type", "Squares.open must return a nnabla_detofa.data.dataset.DetectionDataset for test, got str"),
        ("holdout", "holdout must be 0, since Squares.open returns a dataset of val, got 3"),
    ],
)
def test_a_reader_that_returns_something_else_is_one_sentence(wrong, words, digits):
    config = configs.from_dict(content(wrong=wrong, holdout=3 * (wrong == "holdout")), "mine")
    with pytest.raises(UserError, match=words):
        open_own(config.dataloader)


@pytest.mark.parametrize(
    ("runner", "data", "words"),
    [
        ("mine:Marcing", "voc", "args.runner mine:Marcing: the module mine has no class Marcing; did you mean Marking"),
        ("mine:Nothing", "voc", "Nothing must be a class based on a runner, such as nnabla_detofa.methods.algorithm1"),
        ("no_such_module:Runner", "voc", "args.runner no_such_module:Runner: the module no_such_module cannot be imported"),
        ("mine.Marking", "voc", "args.runner: an import path has the form package.module:Class, got mine.Marking"),
        ("detof", "voc", "args.runner must be detofa, .*; did you mean detofa"),
        ("detofa", "mine:Square", "dataloader mine:Square: the module mine has no class Square; did you mean Squares"),
        ("detofa", "mine:Marking", "Marking must be a frozen dataclass based on nnabla_detofa.config.OwnData"),
        ("detofa", "vox", "dataloader.vox is not a key; did you mean voc"),
    ],
)
def test_a_wrong_name_is_one_sentence(runner, data, words):
    with pytest.raises(UserError, match=words):
        configs.from_dict(content(runner, data, **({"holdout": 1} if data == "voc" else {})), "mine")


@pytest.mark.parametrize("kind", [list[int], Path, int | str, dict, object])
def test_a_field_that_a_config_cannot_hold_is_named(kind):
    made = dataclasses.make_dataclass("Made", [("odd", kind)], frozen=True)
    with pytest.raises(UserError, match=r"^data\.odd must be declared as int, float, .*, and its class declares "):
        checked.read(made, {"odd": 3}, "data")


def test_its_keys_are_overridden_although_its_name_has_dots():
    config = configs.from_dict(configs.overridden(content(), "dataloader.mine:Squares.side=9"), "mine")
    assert config.dataloader.side == 9
