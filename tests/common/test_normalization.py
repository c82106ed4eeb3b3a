"""A data set's normalization: its values, weights that are adapted to it, and where it is kept and checked."""

import json
import logging
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
import tiny
from small import detofa_config
from tiny_run import finished_run

from nnabla_detofa import config as configs
from nnabla_detofa import load_supernet
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.normalization import COCO, FIRST_CONV, FIRST_MEAN, IMAGENET, UNRECORDED, Normalization, adapted
from nnabla_detofa.data.augment import letterbox
from nnabla_detofa.data.sets import open_sets
from nnabla_detofa.evaluation.detections import BoxDetector, detect_images
from nnabla_detofa.methods.build import build
from nnabla_detofa.networks import centernet, supernet, weights
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.tools.sampled_paths import open_supernet
from nnabla_detofa.tools.static_network import StaticGraph

CONFIGS = Path(__file__).parents[2] / "configs"
GRAY = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SIZES = {"width_scale": 0.0625, "strides": (1, 2, 2, 1)}
HEADS = {"deconv_channels": (8, 8), "head_channels": 8}


def values(normalization):
    return {"mean": list(normalization.mean), "std": list(normalization.std)}


def detector(normalization, seed=0, **more):
    return centernet.SearchNet(10, **SIZES, **HEADS, rng=np.random.default_rng(seed), normalization=normalization, **more)


def test_a_pixel_by_hand():
    """Blue 0, green 0.456, red 1: each channel has its own mean and deviation, ImageNet's listed red first elsewhere."""
    pixel = np.array([[[0, 0.456, 1]]], np.float32)
    np.testing.assert_allclose(IMAGENET(pixel)[:, 0, 0], [-0.406 / 0.225, 0, 0.515 / 0.229], atol=1e-6)
    np.testing.assert_allclose(COCO(pixel)[:, 0, 0], [-0.408 / 0.289, 0.009 / 0.274, 0.53 / 0.278], atol=1e-6)
    assert IMAGENET(pixel).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("voc_detofa", IMAGENET),
        ("coco_detofa", COCO),
        ("imagenet_pretrain", IMAGENET),
        ("digits_pretrain", IMAGENET),
        ("digits_detofa", IMAGENET),
        ("bccd_detofa", IMAGENET),
        ("bccd_coco_detofa", IMAGENET),
    ],
)
def test_each_data_set_has_its_own(name, expected):
    config = configs.load(CONFIGS / f"{name}.json")
    assert config.dataloader.normalization == expected
    assert configs.from_dict(config.to_dict(), name) == config


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mean": [0.5, 0.5], "std": [1, 1, 1]}, r"dataloader.voc.normalization.mean must be a list of 3 values, got 2"),
        ({"mean": [103.5, 0.5, 0.5], "std": [1, 1, 1]}, r"normalization.mean\[0\] must be in \[0, 1\], got 103.5"),
        ({"mean": [0.5, 0.5, 0.5], "std": [1, 0, 1]}, r"normalization.std\[1\] must be in \[0.001, 1\], got 0"),
        ("imagenet", "normalization must be a mapping, got 'imagenet'"),
    ],
)
def test_a_bad_value_is_named(entry, message):
    content = detofa_config("data")
    content["dataloader"]["voc"]["normalization"] = entry
    with pytest.raises(UserError, match=message):
        configs.from_dict(content, "bad")


@pytest.mark.parametrize("name, other", [("mean", "std"), ("std", "mean")])
def test_what_is_left_out_keeps_the_data_sets_default(name, other):
    content = detofa_config("data")
    content["dataloader"]["voc"]["normalization"] = {name: [0.5, 0.5, 0.5]}
    found = configs.from_dict(content, "partial").dataloader.normalization
    assert getattr(found, name) == (0.5, 0.5, 0.5) and getattr(found, other) == getattr(IMAGENET, other)


@pytest.mark.parametrize("side", [32, 33])
def test_an_adapted_layer_computes_the_same_from_the_same_pixels(side):
    """Everywhere but at the edges, where windows see padding."""
    net = supernet.SearchNet(3, **SIZES, rng=np.random.default_rng(1), normalization=IMAGENET)
    layer, parameters = net.input_stem[0], net.get_parameters()
    pixels = np.random.default_rng(2).random((side, side, 3)).astype(np.float32)

    def first(normalization):
        y = layer(nn.Variable.from_numpy_array(normalization(pixels)[None]), parameters[FIRST_CONV].shape[0], STORED)
        y.forward()
        return y.d.copy()

    before = first(IMAGENET)
    arrays = {name: parameter.d.copy() for name, parameter in parameters.items()}
    changed = adapted(arrays, "", IMAGENET, GRAY)
    assert set(changed) == {FIRST_CONV, FIRST_MEAN} and all(changed[name].shape == arrays[name].shape for name in changed)
    for name, array in changed.items():
        parameters[name].d = array
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(first(GRAY)[inside], before[inside], atol=1e-5)
    assert np.abs(first(GRAY) - before).max() > 1e-3  # the constant that the padding lacks
    back = adapted(arrays | changed, "", GRAY, IMAGENET)
    np.testing.assert_allclose(back[FIRST_CONV], arrays[FIRST_CONV], atol=1e-6)
    np.testing.assert_allclose(back[FIRST_MEAN], arrays[FIRST_MEAN], atol=1e-6)


def test_an_adapted_weight_by_hand():
    """One filter of one pixel, weights 1, 2, 3: deviations twice as large double them, means 0.1 above shift the mean."""
    arrays = {FIRST_CONV: np.array([1.0, 2, 3]).reshape(1, 3, 1, 1), FIRST_MEAN: np.full((1, 1, 1, 1), 0.5)}
    trained = Normalization((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    found = adapted(arrays, "", trained, Normalization((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)))
    assert found[FIRST_CONV].ravel() == pytest.approx([2, 4, 6])
    assert found[FIRST_MEAN].ravel() == pytest.approx([0.5 - (1 + 2 + 3) * 0.1 / 0.2])


def test_a_weights_file_keeps_it_and_half_precision_too(tmp_path):
    weights.save(detector(GRAY), tmp_path / "w.h5")
    assert weights.normalization_of(tmp_path / "w.h5") == GRAY
    weights.convert(tmp_path / "w.h5", tmp_path / "half.h5", np.float16)
    net = load_supernet(tmp_path / "half.h5", "detection")
    assert net.normalization == GRAY
    assert net.get_active_subnet(net.space.largest).normalization == GRAY
    with pytest.raises(UserError, match=r"normalized by mean 0.5, 0.5, 0.5 .*, not by mean 0.406, 0.456, 0.485"):
        load_supernet(tmp_path / "half.h5", "detection", normalization=IMAGENET)


def test_a_file_that_does_not_say_is_read_as_it_was_trained(tmp_path, caplog):
    """CenterNet's values for COCO were those of all images then."""
    net = supernet.SearchNet(10, **SIZES, rng=np.random.default_rng(0))
    weights.write(tmp_path / "old.h5", net.get_parameters(), SIZES["strides"])
    assert weights.normalization_of(tmp_path / "old.h5") == UNRECORDED == COCO
    assert load_supernet(tmp_path / "old.h5").normalization == COCO
    source = net.get_parameters()
    same = detector(COCO, weights=str(tmp_path / "old.h5")).backbone.get_parameters()
    assert all(np.array_equal(parameter.d, source[name].d) for name, parameter in same.items())
    with caplog.at_level(logging.INFO, "nnabla_detofa"):
        other = detector(IMAGENET, weights=str(tmp_path / "old.h5")).backbone.get_parameters()
    assert (
        "its first layer is adapted to mean 0.406, 0.456, 0.485 and std 0.225, 0.224, 0.229 (blue, green, red)" in caplog.text
    )
    expected = adapted({name: parameter.d for name, parameter in source.items()}, "", COCO, IMAGENET)
    for name, parameter in other.items():
        np.testing.assert_array_equal(parameter.d, expected.get(name, source[name].d))


@pytest.mark.parametrize("kept", [np.zeros(3), np.array([[0.5] * 3, [0.0] * 3]), np.full((2, 3), np.nan), "imagenet"])
def test_a_damaged_record_is_one_sentence(tmp_path, kept):
    weights.write(tmp_path / "w.h5", supernet.SearchNet(10, **SIZES).get_parameters())
    with weights.h5py.File(tmp_path / "w.h5", "r+") as file:
        file.attrs["normalization"] = kept
    with pytest.raises(UserError, match=r"the normalization stored in .*w\.h5"):
        load_supernet(tmp_path / "w.h5")


def test_data_sets_and_network_have_the_configs():
    content = detofa_config(tiny.digits())
    content["dataloader"]["voc"]["normalization"] = values(GRAY)
    config = configs.from_dict(content, "gray")
    net, sets, _ = build(config, pretrained=False)
    assert net.normalization == sets.normalization == GRAY
    image = sets.val.load(0).image
    np.testing.assert_array_equal(sets.eval_item(sets.val, 0)[0], letterbox(image, (64, 64), GRAY)[0])
    one, other = (
        s.train_item(s.train, 0, np.random.default_rng(0))[0] for s in (sets, open_sets(configs.load(tiny.config_file())))
    )
    pixels = [a * np.reshape(n.std, (3, 1, 1)) + np.reshape(n.mean, (3, 1, 1)) for a, n in ((one, GRAY), (other, IMAGENET))]
    np.testing.assert_allclose(*pixels, atol=1e-5)


def test_detection_normalizes_as_the_network_was_trained():
    """`detect_images` gives the network what it knows, not the default."""
    image, seen = np.random.default_rng(0).integers(0, 256, (40, 64, 3)).astype(np.uint8), []

    class Eyes(BoxDetector):
        def __call__(self, images, matrices):
            seen.append(images)
            return [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))]

    for normalization in (GRAY, COCO):
        net = detector(normalization)
        detect_images(Eyes(net, net.space.largest, {}), [image], (64, 64))
        np.testing.assert_array_equal(seen.pop()[0], letterbox(image, (64, 64), normalization)[0])


@pytest.mark.parametrize("normalization", [GRAY, COCO], ids=["gray", "coco"])
def test_an_exported_graph_normalizes_pixels_as_its_network_was_trained(normalization):
    net = detector(normalization)
    path = net.space.largest
    graph = StaticGraph(net, path, (1, 3, 64, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.float32)
    outputs = graph(pixels.transpose(2, 0, 1)[None])
    expected = net(nn.Variable.from_numpy_array(normalization(pixels / 255)[None]), path)
    nn.forward_all([expected.offset, expected.size])
    np.testing.assert_allclose(outputs[1], expected.offset.d, atol=1e-4)
    np.testing.assert_allclose(outputs[2], expected.size.d, atol=1e-4)


def test_a_runs_tools_want_the_runs_own(tmp_path, capsys):
    """Detect, evaluate, export and fine-tune open a detector: another normalization than its weights' is one sentence."""
    run = str(finished_run(tmp_path / "run", tiny.digits()))
    entry = f"dataloader.voc.normalization={json.dumps(values(GRAY))}"
    assert main(["evaluate", run, "--detector", "fullnet", entry]) == 2
    error = capsys.readouterr().err
    assert "holds a network for images normalized by mean 0.406, 0.456, 0.485" in error and "not by mean 0.5, 0.5, 0.5" in error
    assert 'set the normalization of the dataloader to {"mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}' in error


def test_a_run_from_before_the_entry_has_the_normalization_of_then():
    content = configs.load(tiny.config_file()).to_dict()
    del content["dataloader"]["voc"]["normalization"]
    before = json.dumps(content)
    assert configs.from_run(content, "old").dataloader.normalization == COCO
    assert configs.from_dict(content, "new").dataloader.normalization == IMAGENET
    assert configs.from_run(content, "old").config_hash != configs.from_dict(content, "new").config_hash
    assert json.dumps(content) == before
    entry = f"dataloader.voc.normalization={json.dumps(values(GRAY))}"
    assert configs.from_run(content, "old", [entry]).dataloader.normalization == GRAY


def test_paths_of_any_weights_are_evaluated_on_the_images_of_these_weights(tmp_path):
    config = configs.load(tiny.config_file())
    weights.save(detector(GRAY), tmp_path / "gray.h5")
    net, sets, _ = open_supernet(config, tmp_path / "gray.h5")
    assert net.normalization == sets.normalization == GRAY != config.dataloader.normalization
