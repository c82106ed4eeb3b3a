"""Objects in photographs: the run's own detections, whatever files are given, and pictures that can be read."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

from nnabla_detofa.cli.program import main
from nnabla_detofa.common import drawing as pictures
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.images import read_image
from nnabla_detofa.tools import detect
from nnabla_detofa.tools.detect import Detection, draw, find_images, load_detector


class TwoCells:
    """Stands in for a detector: one cell in the upper left quarter of each image, one of its lower right corner."""

    name, classes = "two cells", ("red", "white")

    def __call__(self, image, threshold):
        height, width = image.shape[:2]
        found = [
            Detection((0.0, 0.0, width / 2, height / 2), "white", 0.9),
            Detection((width - 4.0, height - 4.0, float(width), float(height)), "red", 0.4),
        ]
        return [item for item in found if item.score >= threshold]


@pytest.fixture
def photographs(tmp_path):
    """A folder of two photographs, a truncated one and a text, and a photograph of the same name elsewhere."""
    folder, other = tmp_path / "photographs", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "b.bmp", "PNG")
    Image.fromarray(pixels).save(other / "a.png")
    whole = (tiny.digits() / "JPEGImages/test_00000.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "d.txt").write_text("no image")
    (folder / "subfolder").mkdir()
    return folder


@pytest.mark.parametrize("name", ["fullnet", "subnet_2"])
def test_a_photograph_of_the_test_split_has_the_detections_of_the_run(name):
    detector = load_detector(tiny.detofa_run(), name)
    entries = json.loads((tiny.detofa_run() / f"{name}_detections.json").read_text())
    assert sum(len(entry["boxes"]) for entry in entries) > 0
    for entry in entries:
        image = read_image(tiny.digits() / "JPEGImages" / f"{entry['image']}.jpg")
        found = detector(image, 0.05)
        np.testing.assert_allclose([item.score for item in found], entry["scores"], atol=1e-3)
        boxes = np.clip(np.reshape(entry["boxes"], (-1, 4)), 0, image.shape[1])
        np.testing.assert_allclose(np.reshape([item.box for item in found], (-1, 4)), boxes, atol=0.1)
        assert [item.name for item in found] == [detector.classes[label] for label in entry["labels"]]


def test_the_subnet_of_the_largest_budget_is_meant_where_none_is_named():
    assert load_detector(tiny.detofa_run()).name == "subnet_2"
    assert load_detector(tiny.fullnet_run()).name == "fullnet"


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), "a.png"])
def test_what_is_no_image_is_refused(image):
    detector = detect.ImageDetector("fullnet", None, None)
    with pytest.raises(UserError, match="an image must"):
        detector(image)


def test_pictures_and_json(photographs, tmp_path):
    notes, heard = [], []
    files = find_images([photographs, tmp_path / "other" / "a.png"], notes.append)
    file = detect.detect(TwoCells(), files, tmp_path / "out", 0.3, notes.append, lambda file, found: heard.append(file.name))
    assert heard == ["a.png", "b.bmp", "a.png"]
    assert [note.split(" is ")[0] for note in notes] == [f"skipped: {photographs / name}" for name in ("c.jpg", "d.txt")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "a_2.png", "detections.json"}
    content = json.loads(file.read_text())
    assert (content["detector"], content["threshold"], content["classes"]) == ("two cells", 0.3, ["red", "white"])
    first, _, third = content["images"]
    assert (first["image"], first["width"], first["height"]) == (str(photographs / "a.png"), 40, 30)
    assert third["picture"] == "a_2.png"
    assert first["objects"] == [
        {"box": [0, 0, 20, 15], "class": "white", "score": 0.9},
        {"box": [36, 26, 40, 30], "class": "red", "score": 0.4},
    ]


def test_a_threshold_leaves_out(photographs, tmp_path):
    detect.detect(TwoCells(), [photographs / "a.png"], tmp_path / "out", 0.5)
    (entry,) = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    assert [item["class"] for item in entry["objects"]] == ["white"]


@pytest.mark.parametrize("threshold", [-0.1, 30, float("nan"), np.float32(1.5)])
def test_a_threshold_that_no_score_has_is_rejected(threshold):
    found = np.zeros((1, 4)), np.ones(1), np.zeros(1, int)
    with pytest.raises(UserError, match=r"threshold must be in \[0, 1\], got"):
        pictures.in_pixels(found, ["cat"], 8, 8, threshold)


def test_a_detector_is_printed_in_a_line():
    """As a notebook does where it is the last value of a cell, without its weights."""
    assert repr(detect.ImageDetector("fullnet", np.zeros(10**4), np.zeros(10**4))) == "ImageDetector(name='fullnet')"


def test_files_that_must_not_be_given(photographs, tmp_path):
    with pytest.raises(UserError, match="none of the 2 given files is"):
        detect.detect(TwoCells(), [photographs / "c.jpg", photographs / "d.txt"], tmp_path / "out", note=lambda text: None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--output must not be a folder of the images"):
        detect.detect(TwoCells(), [photographs / "a.png"], photographs)
    with pytest.raises(UserError, match="existing files or folders, got .*nothing"):
        find_images([photographs / "nothing"], print)
    notes = []
    with pytest.raises(UserError, match="no file found in .*subfolder; JPEG or PNG images are expected"):
        find_images([photographs / "subfolder"], notes.append)
    assert not notes and find_images([photographs / "subfolder", photographs / "d.txt"], notes.append)
    assert "contains no file" in notes[0]


def test_a_broken_link_is_named(photographs):
    (photographs / "e.jpg").symlink_to("/nowhere/e.jpg")
    notes = []
    found = [file.name for file, _ in detect.read_images(find_images([photographs], notes.append), notes.append)]
    assert found == ["a.png", "b.bmp"] and any("e.jpg" in note for note in notes)


def test_a_folder_inside_a_folder_is_named(photographs):
    (photographs / "subfolder/e.png").write_bytes((photographs / "a.png").read_bytes())
    notes = []
    assert photographs / "subfolder/e.png" not in find_images([photographs], notes.append)
    assert len(notes) == 1 and notes[0].startswith(f"{photographs / 'subfolder'} is skipped")
    assert photographs / "subfolder/e.png" in find_images([photographs, photographs / "subfolder"], notes.append)
    assert len(notes) == 1


def test_photographs_behind_links_are_kept(photographs, tmp_path):
    original, links, out = (photographs / "a.png").read_bytes(), tmp_path / "links", tmp_path / "out"
    for folder in (links, out):
        folder.mkdir()
        (folder / "a.png").symlink_to(photographs / "a.png")
    for folder in (links, photographs):
        with pytest.raises(UserError, match="--output must not be a folder of the images"):
            detect.detect(TwoCells(), [links / "a.png"], folder)
    detect.detect(TwoCells(), [links / "a.png"], out)
    assert (photographs / "a.png").read_bytes() == original
    assert not (out / "a.png").is_symlink() and read_image(out / "a.png").shape == (480, 640, 3)


def test_what_was_found_is_kept_when_it_is_stopped(photographs, tmp_path):
    def stop(file, found):
        if file.name == "b.bmp":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect.detect(TwoCells(), [photographs / name for name in ("a.png", "b.bmp", "a.png")], tmp_path / "out", on_image=stop)
    content = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["picture"] for entry in content["images"]] == ["a.png", "b.png"]


@pytest.fixture
def run(tmp_path):
    """A folder that the command line takes for a run's; `load_detector` is replaced where it is used."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    return str(tmp_path / "run")


def test_a_name_that_is_no_text_is_shown_escaped(photographs, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detect, "load_detector", lambda *arguments: TwoCells())
    name = os.fsdecode(b"\xff.png")
    shutil.copy(photographs / "a.png", tmp_path / "other" / name)
    assert main(["detect", run, str(tmp_path / "other"), "-c", "cpu", "-o", str(tmp_path / "out")]) == 0
    assert "other/\\udcff.png: 2 objects" in capsys.readouterr().out
    entries = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    assert [entry["picture"] for entry in entries] == ["a.png", name] and (tmp_path / "out" / name).exists()


def test_one_sentence_where_no_file_is_an_image(photographs, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detect, "load_detector", lambda *arguments: TwoCells())
    given = [str(photographs / name) for name in ("d.txt", "subfolder")]
    assert main(["detect", run, *given, "-c", "cpu", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: at least one file must be a JPEG or PNG image, but none of the 1 given files is: ")
    assert said.count("\n") == 1 and "d.txt is not a readable image" in said


@pytest.mark.parametrize("side, factor", [(16, 40), (320, 2), (640, 1), (2000, 1)])
def test_small_photographs_are_enlarged_and_boxes_with_them(side, factor):
    image = np.zeros((side // 2, side, 3), np.uint8)
    picture = draw(image, [Detection((side / 4, side / 4, side / 2, side / 2), "red", 0.5)], ("red", "white"))
    assert picture.size == (factor * side, factor * (side // 2))
    pixels = np.array(picture)
    x, y = factor * side // 2, factor * side // 4 + factor * side // 8
    assert pixels[y, x].max() > 100, "the right edge"
    assert pixels[y, x - factor * side // 8].max() == 0, "the middle"


def test_labels_are_inside_the_picture_and_beside_each_other():
    rng = np.random.default_rng(1)
    placed = []
    for _ in range(8):
        corner = rng.uniform(0, 500, 2)
        place = pictures.label_place([*corner, *(corner + 120)], (80, 20), (640, 640), placed)
        assert min(place) >= 0 and place[2] <= 640 and place[3] <= 640
        placed.append(place)
    same = [pictures.label_place([300, 300, 400, 400], (80, 20), (640, 640), [])]
    for _ in range(3):
        same.append(pictures.label_place([300, 300, 400, 400], (80, 20), (640, 640), same))
    assert len(set(same)) == len(same)


def test_the_command(photographs, tmp_path, capsys):
    shutil.copy(tiny.digits() / "JPEGImages/test_00001.jpg", photographs)
    line = ["detect", str(tiny.detofa_run()), str(photographs), "-c", "cpu", "-o", str(tmp_path / "out")]
    assert main([*line, "--detector", "subnet_1", "--threshold", "0.05"]) == 0
    said = capsys.readouterr()
    assert "pictures of subnet_1 and detections.json" in said.out and "skipped: " in said.err
    entries = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    for entry in entries:
        count = len(entry["objects"])
        assert f"{entry['image']}: {count} object{'s' * (count != 1)}" in said.out


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--threshold", "2"], "--threshold must be in [0, 1], got 2"),
        (["--detector", "subnet_9"], "fullnet, subnet_1, subnet_2 or a JSON file with a path, got 'subnet_9'"),
        (["dataloader.voc.root=nowhere"], "nowhere is not a folder"),
        ([f"dataloader.voc.root={'n' * 300}"], "dataloader.voc.root: a path must have at most 4000 characters"),
        (["dataloader.my:Data.root=nowhere"], "must have exactly one entry, voc, coco or yolo, got voc and my:Data"),
        (["nowhere.png"], "existing files or folders, got nowhere.png"),
        (["-o", __file__], "--output must be a folder"),
    ],
)
def test_bad_input_is_one_sentence(extra, message, capsys):
    image = str(tiny.digits() / "JPEGImages/test_00000.jpg")
    assert main(["detect", str(tiny.detofa_run()), image, "-c", "cpu", *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tiny.detofa_run() / "detections").exists()
