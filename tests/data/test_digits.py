import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnabla_detofa.common.boxes import box_iou
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.augment import Augmentation, train_transform
from nnabla_detofa.data.digits import DIGIT_CLASSES, DIGIT_SIDE, FORMS, write_digits
from nnabla_detofa.data.image_folder import ImageFolder
from nnabla_detofa.data.voc import VOCDataset

SMALL = {"train": 12, "val": 4, "test": 5, "crops_train": 20, "crops_val": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits", **SMALL)


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_it_is_a_voc_tree(root, caplog):
    lengths = {split: len(VOCDataset(root, split, DIGIT_CLASSES)) for split in ("train", "val", "trainval", "test")}
    assert lengths == {"train": 12, "val": 4, "trainval": 16, "test": 5}
    assert not caplog.records
    dataset = VOCDataset(root, ["train", "val", "test"], DIGIT_CLASSES)
    counts = set()
    for i in range(len(dataset)):
        sample = dataset.load(i)
        assert sample.image.shape == (128, 128, 3) and not sample.difficult.any()
        heights = sample.boxes[:, 3] - sample.boxes[:, 1]
        assert (heights > 0.7 * DIGIT_SIDE[0]).all() and (heights < DIGIT_SIDE[1]).all()
        assert np.triu(box_iou(sample.boxes, sample.boxes, inclusive=True), 1).max() <= 0.05
        counts.add(len(sample.boxes))
    assert min(counts) >= 1 and max(counts) <= 6 and len(counts) > 2


def test_boxes_are_tight(root):
    """Bright pixels are ink: there are some within a tenth of each edge of a box, and none outside the boxes."""
    dataset = VOCDataset(root, "trainval", DIGIT_CLASSES)
    for i in range(len(dataset)):
        sample = dataset.load(i)
        brightness = sample.image.min(2)
        outside = brightness > 140
        for x1, y1, x2, y2 in sample.boxes.astype(int):
            outside[y1 : y2 + 1, x1 : x2 + 1] = False
            inside, rows, columns = brightness[y1 : y2 + 1, x1 : x2 + 1] > 80, 2 + (y2 - y1) // 10, 2 + (x2 - x1) // 10
            for edge in (inside[:rows], inside[-rows:], inside[:, :columns], inside[:, -columns:]):
                assert edge.any()
        assert not outside.any()


def test_crops_for_pretraining(root):
    for split, count in (("train", 20), ("val", 10)):
        folder = ImageFolder(root / "classification" / split)
        assert folder.classes == DIGIT_CLASSES and len(folder) == count
        assert [folder.load(i).label for i in range(count)] == sorted(list(range(10)) * (count // 10))
        assert folder.load(0).image.shape == (64, 64, 3)


def test_splits_share_no_handwriting():
    digits = [index for part in FORMS.values() for index in range(1797)[part]]
    assert sorted(digits) == list(range(1797))
    from sklearn.datasets import load_digits

    target = load_digits().target
    for part in FORMS.values():
        # Each part begins where a form does, with 0 to 9 twice, and is balanced.
        assert target[part][:20].tolist() == [*range(10)] * 2
        counts = np.bincount(target[part])
        assert counts.min() > 0.85 * counts.max()


def test_same_seed_same_bytes_and_another_seed_others(root, tmp_path):
    again = write_digits(tmp_path / "again", **SMALL)
    assert contents(again) == contents(root)
    other = contents(write_digits(tmp_path / "other", **SMALL, seed=1))
    assert other["JPEGImages/train_00000.jpg"] != contents(root)["JPEGImages/train_00000.jpg"]
    more = contents(write_digits(tmp_path / "more", **{**SMALL, "train": 13}))
    assert all(more[name] == data for name, data in contents(root).items() if name.startswith("JPEGImages"))


def test_an_existing_tree_is_left_alone_or_replaced_on_request(tmp_path):
    root = write_digits(tmp_path / "digits", **SMALL)
    (root / "mark").touch()
    assert write_digits(root, **SMALL) == root and (root / "mark").exists()
    with pytest.raises(UserError, match="was written with seed 0 instead of 1; choose another folder, or overwrite it"):
        write_digits(root, **SMALL, seed=1)
    write_digits(root, **SMALL, overwrite=True)
    assert (root / "mark").exists()  # nothing differs
    write_digits(root, **SMALL, seed=1, overwrite=True)
    assert not (root / "mark").exists() and json.loads((root / "settings.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="but contains something else"):
        write_digits(tmp_path, **SMALL, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("nnabla_detofa.data.digits._write_crop", full)
    with pytest.raises(OSError, match="no space"):
        write_digits(tmp_path / "digits", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"image_size": 32}, {"crop_size": 40}, {"train": 0}, {"crops_val": -1}])
def test_bad_settings_are_named(tmp_path, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be at least"):
        write_digits(tmp_path / "digits", **{**SMALL, **options})


def test_digits_can_be_augmented_without_mirroring(root):
    sample = VOCDataset(root, "train", DIGIT_CLASSES).load(0)
    image, _, matrix = train_transform(sample, (128, 128), np.random.default_rng(0), Augmentation(flip=0))
    assert image.shape == (3, 128, 128) and matrix[0, 0] > 0


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(5, "Input/output error"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_tree_that_cannot_be_replaced_is_brought_back(root, tmp_path, monkeypatch, error, raised):
    shutil.copytree(root, tmp_path / "digits")
    before, rename = contents(tmp_path / "digits"), Path.rename

    def failing(self, target):
        if self.name == "made":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(raised):
        write_digits(tmp_path / "digits", **SMALL, seed=1, overwrite=True)
    assert contents(tmp_path) == {f"digits/{name}": content for name, content in before.items()}
