"""A path in a file of its own is the supernet's path; its metadata are right; what cannot be written says why."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as FilePath
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
import tiny
from tiny_run import finished_run

from nnabla_detofa import config as configs
from nnabla_detofa import load_detector
from nnabla_detofa.backend.compat import nn
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.augment import letterbox
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.images import read_image
from nnabla_detofa.evaluation.detections import BoxDetector
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.methods.build import make_model
from nnabla_detofa.tools import static_network
from nnabla_detofa.tools.evaluate import open_detector, static_detector
from nnabla_detofa.tools.export import TOLERANCE, about_file, comparison_images, export
from nnabla_detofa.tools.static_network import StaticGraph, largest_difference, path_outputs, run_nnp, run_onnx

pytestmark = pytest.mark.thorough

ROOT = FilePath(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_detect.py"


def has_environment() -> bool:
    try:
        return bool(static_network.export_python())
    except UserError:
        return False


needs_environment = pytest.mark.skipif(not has_environment(), reason="there is no .venv-export: make test-export makes it")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "tiny", tiny.digits())


@pytest.fixture(scope="module")
def opened(run):
    return open_detector(run, "subnet_2")


# --- The network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_static_network_is_the_path(opened, seed, fold, tmp_path):
    """On noise and on digits, with pixels or normalized images, and again after it was saved and loaded."""
    rng, size = np.random.default_rng(seed), (64, 96)
    path = opened.net.space.sample(rng)
    statistics = reestimate(opened.net, path, [rng.normal(size=(4, 3, 64, 64))])
    pixels, images = comparison_images(opened.sets, size, batch=2)
    noise = rng.normal(size=images.shape).astype(np.float32)
    assert images.shape == pixels.shape == (2, 2, 3, *size) and pixels.max() > 100 > images.max()
    of_images, of_noise = (path_outputs(opened.net, path, statistics, inputs) for inputs in (images, noise))
    net = static_detector(opened.network, opened.net, path, statistics)
    for normalize, inputs, expected in ((True, pixels, of_images), (False, images, of_images), (False, noise, of_noise)):
        graph = StaticGraph(net, path, inputs.shape[1:], normalize, statistics if fold else None)
        assert [part.shape for part in expected] == [(4, channels, 16, 24) for channels in (10, 2, 2)]
        found = [np.concatenate(part) for part in zip(*map(graph, inputs))]
        assert largest_difference(found, expected) < 1e-5
        graph.save(tmp_path / "path.nnp")
        loaded = run_nnp(tmp_path / "path.nnp", inputs)
        np.testing.assert_allclose(loaded[0], found[0], atol=1e-6)
        assert largest_difference(loaded, expected) < 1e-5


def test_differences_are_relative_above_one():
    assert largest_difference([np.array([0.5, 210.0])], [np.array([0.25, 200.0])]) == 0.25
    assert largest_difference([np.array([0.5]), np.array([300.0])], [np.array([0.5]), np.array([200.0])]) == 0.5


@pytest.mark.parametrize("fold", [False, True])
def test_a_file_holds_its_own_slice_and_nothing_else(run, opened, fold, tmp_path):
    about = export(opened, run, "subnet_2", tmp_path / "path.nnp", fold=fold)
    with zipfile.ZipFile(tmp_path / "path.nnp") as archive:
        archive.extract("parameter.h5", tmp_path)
    found = {}
    with h5py.File(tmp_path / "parameter.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    supernet = opened.net.get_parameters()
    fixed = re.compile("normalize/|.*(_mean|_var)$")
    learnt = sum(array.size for name, array in found.items() if not fixed.match(name))
    if fold:  # gamma is gone into the weights
        parameters = static_detector(opened.network, opened.net, opened.path).get_parameters()
        gammas = sum(parameter.d.size for name, parameter in parameters.items() if "gamma" in name)
        assert learnt == about["parameters"] - gammas
        return
    assert learnt == about["parameters"] < sum(p.d.size for n, p in supernet.items() if not fixed.match(n))
    for name in found.keys() & supernet.keys():
        if not name.endswith(("_mean", "_var")):
            part = tuple(slice(0, size) for size in found[name].shape)
            np.testing.assert_array_equal(found[name], supernet[name].d[part], err_msg=name)


# --- The file and what is beside it -----------------------------------------------------------------------------------


def test_the_metadata(run, opened, tmp_path, capsys):
    file, subnet = tmp_path / "two.nnp", json.loads((run / "subnet_2.json").read_text())
    assert main(["export", str(run), "--detector", "subnet_2", "-o", str(file), "-c", "cpu", "--batch", "3", "--fold"]) == 0
    printed = capsys.readouterr().out
    about = json.loads((tmp_path / "two.nnp.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.nnp", "two.nnp.json"]
    assert about["run"] == "tiny" and about["detector"] == "subnet_2" and about["path"] == subnet["path"]
    assert (about["ap50"], about["ap_image_size"]) == (0.375, [64, 64])
    assert about["classes"] == list("0123456789") and about["stride"] == 4
    assert about["input"]["shape"] == [3, 3, 64, 64] and not about["input"]["normalized_by_user"]
    assert (about["input"]["mean"], about["input"]["std"]) == ([0.406, 0.456, 0.485], [0.225, 0.224, 0.229])
    assert about["outputs"] == {"heatmap": [3, 10, 16, 16], "offset": [3, 2, 16, 16], "size": [3, 2, 16, 16]}
    assert about["flops"] == opened.cost.flops([opened.path])[0] and about["batch_normalization"] == "folded"
    assert re.match("commit [0-9a-f]{12}|version ", about["made_by"])
    assert 0 <= about["largest_difference"] < 1e-5 and about["compared_images"] == 6
    assert f"on 6 test images: {about['largest_difference']:.2g}\n" in printed and f"written: {file}, " in printed
    [*outputs] = run_nnp(file, comparison_images(opened.sets, (64, 64), 3)[0])
    assert [list(output.shape[1:]) for output in outputs] == [shape[1:] for shape in about["outputs"].values()]


@pytest.mark.parametrize("options", [["--fold"], ["--normalized", "--batch", "2"]])
def test_an_exported_detector_finds_what_the_run_finds(run, opened, tmp_path, capsys, monkeypatch, options):
    file = tmp_path / "two.nnp"
    assert main(["export", str(run), "--detector", "subnet_2", "-o", str(file), "-c", "cpu", *options]) == 0
    alone, exported = load_detector(run, "subnet_2"), load_detector(file)
    assert exported.classes == alone.classes
    images = opened.sets.test.files
    for image in map(read_image, images):
        ours, theirs = exported(image, 0.05), alone(image, 0.05)
        np.testing.assert_allclose([item.score for item in ours], [item.score for item in theirs], atol=1e-3)
    monkeypatch.chdir(tmp_path)
    assert main(["detect", str(file), str(images[0]), "-c", "cpu", "--threshold", "0.05"]) == 0
    assert "written: pictures of " in capsys.readouterr().out and (tmp_path / "detections" / images[0].name).is_file()
    assert main(["detect", str(file), str(images[0]), "-c", "cpu", "--detector", "subnet_1"]) == 2
    assert "leave out --detector" in capsys.readouterr().err


def test_an_exported_detector_leaves_the_process_as_it_was_and_is_shared_by_threads(opened, run, tmp_path):
    export(opened, run, "subnet_2", tmp_path / "two.nnp")
    own = nn.parameter.get_parameter_or_create("backbone/input_stem/0/conv/conv/_W", (1,))
    before = dict(nn.get_parameters(grad_only=False))
    detector, images = load_detector(tmp_path / "two.nnp"), [read_image(file) for file in opened.sets.test.files]
    after = nn.get_parameters(grad_only=False)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before) and own.shape == (1,)
    nn.parameter.pop_parameter("backbone/input_stem/0/conv/conv/_W")
    alone = [detector(image, 0.0) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: detector(images[number % len(images)], 0.0), range(40))) == (alone * 40)[:40]
    with pytest.raises(UserError, match="leave out name"):
        load_detector(tmp_path / "two.nnp", "subnet_1")


@pytest.fixture(scope="module")
def exported(opened, run, tmp_path_factory):
    """An exported detector, to be copied with its metadata."""
    file = tmp_path_factory.mktemp("exported") / "two.nnp"
    export(opened, run, "subnet_2", file)
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.clear(), "a value is missing"),
        (lambda about: about.update(classes=3), "classes must be a list"),
        (lambda about: about.update(classes=["a"]), "its metadata do not describe it"),
        (lambda about: about.update(stride=8), "stride is 8, but its heatmap has the shape"),
        (lambda about: about.update(stride=0), "(stride must be in [1, 64], got 0)"),
        (lambda about: about.update(outputs={"heatmap": 1}), "outputs must be a list of 3 values"),
        (lambda about: about["input"].update(shape=[10**9, 3, 64, 64]), "shape[0] must be in [1, 1024], got 1000000000"),
        (lambda about: about["input"].update(shape=[1, 3, 64, 96]), "its metadata do not describe it"),
        (lambda about: about["input"].update(std=[0, 1, 1]), "std[0] must be in [0.001, 1], got 0"),
        (lambda about: about["input"].update(mean=[math.nan, 0, 0]), "mean[0] must be"),
        (lambda about: about["input"].pop("mean"), "a value is missing (KeyError('mean'))"),
    ],
)
def test_damaged_metadata_of_an_exported_detector(exported, tmp_path, change, words):
    file = FilePath(shutil.copy(exported, tmp_path))
    about = json.loads(about_file(exported).read_text())
    change(about)
    about_file(file).write_text(json.dumps(about))
    with pytest.raises(UserError, match=re.escape(words)):
        load_detector(file)


def test_the_shipped_detector_finds_digits(tmp_path):
    write_digits(tmp_path / "digits", train=1, val=1, test=6, crops_train=0, crops_val=0)
    detector = load_detector("configs/weights/digits_detector.nnp")
    images = sorted((tmp_path / "digits/JPEGImages").glob("test_*.jpg"))
    found = [detector(read_image(image)) for image in images]
    assert detector.classes == tuple("0123456789") and sum(map(len, found)) >= len(images)


def test_a_damaged_or_missing_exported_detector(opened, tmp_path, capsys):
    image = str(opened.sets.test.files[0])
    assert main(["detect", str(tmp_path / "none.nnp"), image, "-c", "cpu", "-o", str(tmp_path / "out")]) == 2
    assert "none.nnp is not an exported detector: the file does not exist" in capsys.readouterr().err
    (tmp_path / "broken.nnp").write_bytes(b"PK")
    takes = {"shape": [1, 3, 64, 64], "mean": [0, 0, 0], "std": [1, 1, 1]}
    about = {"classes": ["a"], "stride": 4, "outputs": {"heatmap": 1, "offset": 1, "size": 1}, "input": takes}
    (tmp_path / "broken.nnp.json").write_text(json.dumps(about))
    assert main(["detect", str(tmp_path / "broken.nnp"), image, "-c", "cpu", "-o", str(tmp_path / "out")]) == 2
    assert "broken.nnp is damaged, or was not written by export" in capsys.readouterr().err


def test_a_path_from_a_file_at_another_size(run, opened, tmp_path):
    found = tmp_path / "found.json"
    found.write_text(json.dumps({"path": opened.path.to_ofa(opened.net.space.geometry)}))
    line = ["export", str(run), "--detector", str(found), "-o", str(tmp_path / "wide.nnp"), "-c", "cpu", "--size", "32", "96"]
    assert main([*line, "--normalised"]) == 0, "the older spelling"
    about = json.loads((tmp_path / "wide.nnp.json").read_text())
    assert about["input"]["shape"] == [1, 3, 32, 96] and about["input"]["normalized_by_user"]
    assert about["outputs"]["size"] == [1, 2, 8, 24] and "ap50" not in about
    assert about["flops"] * 2 * 4 == opened.cost.flops([opened.path])[0] * 3 * 2  # 8 x 24 cells instead of 16 x 16


def test_a_network_and_metadata_of_different_exports_are_not_mixed(run, opened, tmp_path, monkeypatch):
    export(opened, run, "subnet_2", tmp_path / "x.nnp")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    replace = os.replace

    def failing(source, target):
        if str(source).endswith("fresh/x.nnp.json"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error"):
        patched.setattr(os, "replace", failing)
        export(opened, run, "subnet_2", tmp_path / "x.nnp", normalize=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    export(opened, run, "subnet_2", tmp_path / "y.nnp", normalize=False)
    load_detector(tmp_path / "y.nnp")
    (tmp_path / "x.nnp.json").replace(tmp_path / "y.nnp.json")  # a user copies one of two files
    with pytest.raises(UserError, match="y.nnp is damaged.*y.nnp.json belongs to another file.*export the detector again"):
        load_detector(tmp_path / "y.nnp")


def test_a_folder_in_the_place_of_the_metadata_is_refused_before_the_work(run, opened, tmp_path, capsys):
    (tmp_path / "x.nnp.json").mkdir()
    assert main(["export", str(run), "--detector", "subnet_2", "-o", str(tmp_path / "x.nnp"), "-c", "cpu"]) == 2
    assert "x.nnp.json, which is a folder" in capsys.readouterr().err and not (tmp_path / "x.nnp").exists()


def test_a_file_that_differs_is_not_written(run, opened, tmp_path, monkeypatch):
    def slightly_wrong(file, batches, names):
        heatmap, offset, size = run_nnp(file, batches)
        return heatmap, offset + 2e-4, size

    monkeypatch.setitem(static_network.FORMATS, ".nnp", slightly_wrong)
    with pytest.raises(UserError, match=r"path.nnp is not written: its outputs differ by 0.0002 .*, more than 0.0001"):
        export(opened, run, "subnet_2", tmp_path / "path.nnp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "x.tflite"], "the name of an exported detector must end in .nnp or .onnx, got x.tflite"),
        (["-o", "no/such/x.nnp"], "--output must be a file in an existing folder, got no/such/x.nnp"),
        (["-o", "x.onnx"], "writing ONNX needs the environment nowhere, which is missing or incomplete; run make setup-export"),
        (["--detector", "subnet_3"], "a detector of .* must be fullnet, subnet_1, subnet_2 or a JSON file .*, got 'subnet_3'"),
        (["--size", "50"], "--size must be from 32 to 16384 and a multiple of 16 pixels, got 50 50"),
        (["--size", "16400"], "--size must be from 32 to 16384 and a multiple of 16 pixels, got 16400 16400"),
        (["--size", "64", "64", "64"], "--size must be a side, or height and width, got 64 64 64"),
        (["--batch", "0"], "--batch must be from 1 to 1024, got 0"),
        (["--batch", "1025"], "--batch must be from 1 to 1024, got 1025"),
        (["--batch", "1024", "--size", "16384"], "--batch 1024 and --size 16384 16384 need more than .* GB of memory, .*"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(run, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(static_network, "ENVIRONMENT", FilePath("nowhere"))
    assert main(["export", str(run), "--detector", "subnet_2", "-o", "x.nnp", "-c", "cpu", *options]) == 2
    assert re.fullmatch(f"error: {message}", capsys.readouterr().err.splitlines()[-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "null", "[]", "{}", '{"ap50": "x"}', "NaN"])
def test_a_damaged_result_is_noticed_before_the_work(run, opened, content, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config", "summary"):
        (folder / f"{name}.json").write_text((run / f"{name}.json").read_text())
    shutil.copytree(run / "fine_tuning", folder / "fine_tuning")
    if content:
        (folder / "subnet_2.json").write_text(content)
    with pytest.raises(UserError, match="subnet_2.json is damaged" if content else "subnet_2.json is missing"):
        export(opened, folder, "subnet_2", tmp_path / "path.nnp")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_is_not_over(run, tmp_path, capsys):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_text((run / "config.json").read_text())
    for detector, message in (
        (
            "subnet_1",
            "must be fullnet or a JSON file with a path, got 'subnet_1'; the subnets are available once the run has finished",
        ),
        ("fullnet", f"has no weights of fullnet yet: {folder}/fullnet/weights.h5 does not exist"),
    ):
        assert main(["export", str(folder), "--detector", detector, "-o", str(tmp_path / "x.nnp"), "-c", "cpu"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(message)


# --- The example, and ONNX --------------------------------------------------------------------------------------------


def expected_boxes(opened, image, size):
    """Our own detections of an image: (boxes, scores, labels)."""
    x, matrix = letterbox(image, size)
    return BoxDetector(opened.net, opened.path, opened.statistics())(x[None], matrix[None])[0]


def photograph(opened, tmp_path) -> FilePath:
    """A digits image that is not square, as a file."""
    file = tmp_path / "photograph.png"
    cv2.imwrite(str(file), opened.sets.test.load(0).image[:45])
    return file


@pytest.mark.parametrize("normalize", [True, False])
def test_the_example_finds_what_we_find(run, opened, normalize, tmp_path, monkeypatch):
    """With a stand-in for ONNX Runtime that runs the NNP file instead."""

    def session(network, providers):
        return SimpleNamespace(run=lambda names, inputs: run_nnp(network, inputs["image"][None]))

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=session))
    program = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(), EXAMPLE.name, "exec"), program)
    file, image = tmp_path / "path.nnp", cv2.imread(str(photograph(opened, tmp_path)))
    export(opened, run, "subnet_2", file, size=(64, 96), batch=2, normalize=normalize)
    boxes, scores, labels = expected_boxes(opened, image, (64, 96))
    found = program["detect"](str(file), image)
    assert [name for name, _, _ in found] == [opened.sets.classes[label] for label in labels] and len(found) == 100
    np.testing.assert_allclose([score for _, score, _ in found], scores, atol=1e-5)
    np.testing.assert_allclose([box for _, _, box in found], boxes, atol=1e-3)


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 40


@needs_environment
@pytest.mark.parametrize("fold", [False, True])
def test_onnx_in_another_environment_finds_what_we_find(run, opened, fold, tmp_path):
    file, image = tmp_path / "path.onnx", photograph(opened, tmp_path)
    parameters = static_detector(opened.network, opened.net, opened.path).get_parameters()
    gammas = {parameter.shape for name, parameter in parameters.items() if "gamma" in name}
    assert (1, 1, 1, 1) in gammas  # a layer of one channel, which the converter alone gets wrong
    about = export(opened, run, "subnet_2", file, size=(64, 96), fold=fold)
    assert about["largest_difference"] < 1e-5
    command = [static_network.export_python(), EXAMPLE, file, image, "0"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    boxes, scores, labels = expected_boxes(opened, cv2.imread(str(image)), (64, 96))
    assert [line.split()[0] for line in printed] == [opened.sets.classes[label] for label in labels]
    numbers = np.array([line.split()[1:] for line in printed], float)
    np.testing.assert_allclose(numbers[:, 0], scores, atol=0.0051)  # printed with two digits, and one
    np.testing.assert_allclose(numbers[:, 1:], boxes, atol=0.051)


@needs_environment
@pytest.mark.parametrize("fold", [False, True])
def test_every_operation_of_the_full_width_converts(fold, tmp_path):
    config = configs.load(ROOT / "configs" / "voc_detofa.json", ["network.centernet_ofa_resnet50.weights=null"])
    net, rng = make_model(config, 20), np.random.default_rng(0)
    for name, parameter in net.get_parameters().items():
        if name.endswith("_gamma"):
            parameter.d = rng.uniform(0.5, 1.5, parameter.shape).astype(np.float32)
    path, images = net.space.sample(rng), rng.normal(size=(1, 1, 3, 128, 128)).astype(np.float32)
    statistics = reestimate(net, path, [rng.normal(size=(2, 3, 128, 128))])
    static = static_detector(config.network, net, path, statistics)
    graph = StaticGraph(static, path, (1, 3, 128, 128), False, statistics if fold else None)
    graph.save(tmp_path / "voc.nnp")
    static_network.convert(tmp_path / "voc.nnp", tmp_path / "voc.onnx", batch=1)
    found = run_onnx(tmp_path / "voc.onnx", images)
    assert found[0].shape == (1, 20, 32, 32)
    assert largest_difference(found, path_outputs(net, path, statistics, images)) < TOLERANCE


def test_a_half_made_environment_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(static_network, "ENVIRONMENT", tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    with pytest.raises(UserError, match="is missing or incomplete; run make setup-export"):
        static_network.export_python()
    (tmp_path / static_network.COMPLETE).touch()
    assert static_network.export_python() == python


@needs_environment
def test_what_the_converter_says_is_passed_on(tmp_path):
    (tmp_path / "x.nnp").write_text("not an archive")
    with pytest.raises(UserError, match="nnabla-converter could not write ONNX"):
        static_network.convert(tmp_path / "x.nnp", tmp_path / "x.onnx", batch=1)
