"""Weights files as networks: what the shapes tell, what is refused, and what the log says of a load."""

import importlib
import logging
import shutil

import h5py
import nnabla as nn
import numpy as np
import pytest

import nnabla_detofa.backend.compat
from nnabla_detofa import load_supernet
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.networks import centernet, supernet, weights
from nnabla_detofa.networks.loading import width_scale
from nnabla_detofa.networks.resnet50 import Plan
from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.search_space import ofa_resnet50

STRIDES = (1, 2, 2, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network of each task with random weights, and its file."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(3)
    nets = {
        "classification": supernet.SearchNet(7, 0.125, STRIDES, rng=rng),
        "detection": centernet.SearchNet(3, 0.125, STRIDES, deconv_channels=(16, 24), head_channels=8, rng=rng),
    }
    for task, net in nets.items():
        for parameter in net.get_parameters().values():
            parameter.d = parameter.d + np.abs(rng.normal(0, 0.1, parameter.shape))
        weights.write(folder / f"{task}.h5", net.get_parameters(), normalization=net.normalization)
    return folder, nets


@pytest.mark.parametrize(("task", "classes"), [("classification", 7), ("detection", 3)])
def test_a_file_becomes_the_network_it_was(files, task, classes):
    folder, nets = files
    net, rng = load_supernet(folder / f"{task}.h5", task, classes, strides=STRIDES), np.random.default_rng(0)
    path = nets[task].space.sample(rng)
    assert net.space.geometry == nets[task].space.geometry and path in net.space
    x = nn.Variable.from_numpy_array(rng.normal(size=(2, 3, 64, 64)).astype(np.float32))
    for theirs, ours in zip(*(out if isinstance(out, tuple) else (out,) for out in (nets[task](x, path), net(x, path)))):
        nn.forward_all([theirs, ours])
        np.testing.assert_array_equal(ours.d, theirs.d)


def test_the_older_names_of_the_heatmap_head_are_read(files, tmp_path):
    """Files of older versions have `heat_map/`, and their hashes in results stay valid."""
    folder, nets = files
    parameters = nets["detection"].get_parameters()
    older = {weights.older_name(name): parameter for name, parameter in parameters.items()}
    assert older.keys() != parameters.keys() and weights.digest(older) == weights.digest(parameters)
    weights.write(tmp_path / "older.h5", older, STRIDES, nets["detection"].normalization)
    read = weights.read(tmp_path / "older.h5")
    assert read.keys() == parameters.keys()
    net = load_supernet(tmp_path / "older.h5", "detection")
    assert weights.digest(net.get_parameters()) == weights.digest(parameters)
    weights.convert(tmp_path / "older.h5", tmp_path / "half.h5", np.float16)
    assert weights.read(tmp_path / "half.h5").keys() == parameters.keys()
    backbone = centernet.SearchNet(5, 0.125, STRIDES, deconv_channels=(16, 24), weights=str(tmp_path / "older.h5"))
    np.testing.assert_array_equal(
        backbone.get_parameters()["backbone/blocks/0/conv1/conv/conv/_W"].d, read["backbone/blocks/0/conv1/conv/conv/_W"]
    )


@pytest.mark.parametrize("scale", [0.0625, 0.1, 0.125, 0.2, 0.25, 0.3, 0.35, 0.5, 0.65, 0.75, 1.0, 1.5])
def test_the_width_is_found(scale):
    geometry = Geometry(width_scale=scale)
    assert width_scale(Plan.of(ofa_resnet50(geometry).largest, geometry), "w.h5") == scale


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        (
            "classification",
            {"task": "detection"},
            r"must contain a detection supernet, got a classification supernet; .* builds a det",
        ),
        ("detection", {}, r"must contain a classification supernet, got a detection supernet$"),
        ("detection", {"task": "segmentation"}, "task must be classification or detection, got 'segmentation'"),
        ("classification", {"num_classes": 10}, r"num_classes must be 7, as in .*classification\.h5, got 10"),
        ("classification", {"width_scale": 0.25}, r"input_stem/0/conv/conv/_W .* has the shape"),
        ("classification", {"head_channels": 8}, "no option head_channels for classification; known are width_scale, strides"),
        (
            "detection",
            {"task": "detection", "deconv_channels": (16,)},
            r"holds 5 parameters that this network lacks.*deconv/1/",
        ),
        ("none", {}, "does not exist"),
    ],
)
def test_what_does_not_fit_is_one_sentence(files, file, arguments, message):
    with pytest.raises(UserError, match=message):
        load_supernet(files[0] / f"{file}.h5", **arguments)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_changed_number_is_noticed(files, tmp_path, task):
    """A flipped bit on a disk leaves a file that HDF5 reads."""
    damaged = shutil.copy(files[0] / f"{task}.h5", tmp_path)
    with h5py.File(damaged, "r+") as opened:
        opened["backbone" if task == "detection" else "."]["blocks/2/conv1/conv/conv/_W"][0, 0] *= 1.5
    with pytest.raises(UserError, match="blocks/2/conv1/conv/conv/_W in .*h5 is damaged: restore an intact copy"):
        weights.read(damaged)
    with h5py.File(damaged, "r+") as opened:
        del opened["backbone" if task == "detection" else "."]["blocks/2/conv1/conv/conv/_W"].attrs[weights.CHECKSUM]
    weights.read(damaged)


@pytest.mark.parametrize("names", [("strides",), ("normalization",), ("network", "network_settings")])
def test_an_attribute_that_cannot_be_read_is_one_sentence(files, tmp_path, monkeypatch, names):
    def damaged(self, name, default=None):
        raise OSError("Can't synchronously read data (actual len exceeds EOA)")

    monkeypatch.setattr(h5py.AttributeManager, "get", damaged)
    with pytest.raises(UserError, match="cannot be read as HDF5 .*actual len"):
        weights.attributes_of(files[0] / "detection.h5", *names)


def test_the_settings_of_a_network_are_read_as_they_were_written(tmp_path):
    for text in ('{"a": "\u732b"}', "x" * 70_000):
        weights.write(tmp_path / "w.h5", {}, network_settings=text)
        assert weights.attributes_of(tmp_path / "w.h5", "network_settings", "strides") == [text, None]
        with h5py.File(tmp_path / "w.h5") as opened:
            assert opened.attrs.get_id("network_settings").get_type().is_variable_str() is (len(text) > 60_000)


def test_a_path_cut_out_is_no_supernet(files, tmp_path):
    net = files[1]["classification"]
    smallest = {"d": [0] * 5, "e": [0.2] * 18, "w": [0] * 6}
    weights.write(tmp_path / "cut.h5", net.get_active_subnet(smallest).get_parameters())
    with pytest.raises(
        UserError, match="no complete classification supernet: it lacks the parameter blocks/2/conv1/conv/conv/_W"
    ):
        load_supernet(tmp_path / "cut.h5")


@pytest.mark.parametrize(
    ("task", "unused"), [("classification", "2 others in it are unused (classifier)"), ("detection", "22 others")]
)
def test_a_backbone_is_loaded_whole_and_the_log_says_what_was_left(files, task, unused, caplog, tmp_path):
    folder, nets = files
    detector = centernet.SearchNet(5, 0.125, STRIDES, deconv_channels=(16, 16), head_channels=8)
    with caplog.at_level(logging.INFO, "nnabla_detofa"):
        left = weights.load_backbone(detector, folder / f"{task}.h5")
    assert unused in caplog.text and "loaded the 305 parameters of the backbone" in caplog.text
    assert len(left) == int(unused.split()[0])
    source = nets[task].get_parameters()
    for name, parameter in detector.backbone.get_parameters().items():
        np.testing.assert_array_equal(parameter.d, source[("backbone/" if task == "detection" else "") + name].d)


def test_a_backbone_that_is_not_all_of_the_file_is_refused(files, tmp_path):
    source = files[1]["classification"].get_parameters()
    detector = centernet.SearchNet(3, 0.125, STRIDES, deconv_channels=(16, 16), head_channels=8)
    before = {name: parameter.d.copy() for name, parameter in detector.get_parameters().items()}
    weights.write(tmp_path / "more.h5", {**source, "blocks/18/conv1/conv/conv/_W": source["blocks/2/conv1/conv/conv/_W"]})
    with pytest.raises(UserError, match="holds 1 parameters that belong to no backbone or head here, the first is blocks/18/"):
        weights.load_backbone(detector, tmp_path / "more.h5")
    weights.write(tmp_path / "less.h5", {name: p for name, p in source.items() if not name.startswith("blocks/17/conv3")})
    with pytest.raises(UserError, match=r"lacks the parameter blocks/17/conv3/.* \(5 of 305 are missing\)"):
        weights.load_backbone(detector, tmp_path / "less.h5")
    for name, parameter in detector.get_parameters().items():
        np.testing.assert_array_equal(parameter.d, before[name])


def test_a_supernet_that_nnabla_nas_saved_gives_the_same_logits(tmp_path):
    theirs = importlib.import_module(f"{nnabla_detofa.backend.compat.NETWORKS}.ofa_resnet50")
    if not hasattr(theirs, "SearchNet"):
        pytest.skip("the wheel of nnabla-nas lacks ofa_resnet50; a source checkout has it")
    net = theirs.SearchNet(10, depth_list=[0, 1, 2], expand_ratio_list=[0.2, 0.25, 0.35], width_mult_list=[0.65, 0.8, 1.0])
    rng = np.random.default_rng(0)
    for name, parameter in net.get_parameters().items():
        if not name.endswith("_W"):
            parameter.d = rng.uniform(0.5, 1.5, parameter.shape)
    net.save_parameters(str(tmp_path / "weights.h5"))
    net.apply(training=False)
    ours = load_supernet(tmp_path / "weights.h5")
    x = nn.Variable.from_numpy_array(rng.normal(size=(2, 3, 64, 64)).astype(np.float32))
    for path in (ours.space.largest, ours.space.sample(rng)):
        net.set_active_subnet(**path.to_ofa())
        expected, found = net(x), ours(x, path)
        nn.forward_all([expected, found])
        np.testing.assert_allclose(found.d, expected.d, rtol=1e-5)


def test_a_file_tells_its_strides_where_training_here_wrote_it(files, tmp_path):
    _, nets = files
    weights.write(tmp_path / "w.h5", nets["classification"].get_parameters(), STRIDES)
    assert load_supernet(tmp_path / "w.h5").space.geometry.strides == STRIDES
    assert load_supernet(tmp_path / "w.h5", strides=(1, 2, 2, 2)).space.geometry.strides == (1, 2, 2, 2)
    weights.convert(tmp_path / "w.h5", tmp_path / "half.h5", np.float16)
    assert load_supernet(tmp_path / "half.h5").space.geometry.strides == STRIDES
    for wrong in (2, "1221", (1, 3, 2, 2), (1, 2, 2)):
        with pytest.raises(UserError, match="strides must be 4 numbers, each 1 or 2, got"):
            load_supernet(tmp_path / "w.h5", strides=wrong)


def test_an_array_is_written_as_h5py_writes_it(tmp_path):
    arrays = {"a/b/_W": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a/t": 7, "half": np.ones((1, 2), np.float16)}
    with h5py.File(tmp_path / "ours.h5", "w") as ours, h5py.File(tmp_path / "theirs.h5", "w") as theirs:
        for index, (name, array) in enumerate(arrays.items()):
            weights.add_array(ours, name, array, index=index, need_grad=True)
            data = theirs.create_dataset(name, data=array)
            data.attrs["index"], data.attrs["need_grad"] = index, True
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        for name in arrays:
            one, other = ours[name], theirs[name]
            assert (one.dtype, one.shape, one[()].tobytes()) == (other.dtype, other.shape, other[()].tobytes())
            assert dict(one.attrs) == dict(other.attrs)
            for key in other.attrs:
                assert one.attrs.get_id(key).get_type() == other.attrs.get_id(key).get_type()
