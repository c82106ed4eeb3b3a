"""Latency tables: every layer in its place, files, and the command on a small supernet."""

import json

import numpy as np
import pytest
from visit import count_macs

from nnabla_detofa import config as configs
from nnabla_detofa.backend.compat import Model
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import CenternetElasticNeck
from nnabla_detofa.networks.centernet import Detector, detector_of
from nnabla_detofa.space.costs import CostModel, cost_range
from nnabla_detofa.space.counting import sample_within
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.search_space import ofa_resnet50, product_space
from nnabla_detofa.tools import measure_latency as latency
from nnabla_detofa.tools.measure_latency import Latency, measure, read

SMALL = Geometry(width_scale=0.0625, strides=(1, 2, 2, 1))
MODELS = (
    CostModel((64, 96), 3, "detector", SMALL, HeadGeometry(3, (8, 8), 8)),
    CostModel(64, 3, "classifier", Geometry(width_scale=0.0625, base_depths=(1, 2), stage_channels=(256, 512), strides=(1, 2))),
)


@pytest.fixture(scope="module")
def counted():
    """The table of `MODELS[0]` by a clock that shows multiply-accumulates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "forward_time", lambda output, repeats, synchronize: count_macs(output))
        return measure(MODELS[0], 1, lambda: None)


@pytest.mark.parametrize(
    ("network", "data", "given", "classes"),
    [({}, {}, None, 20), ({}, {"classes": ["a", "b", "c"]}, None, 3), ({"num_classes": 4}, {}, None, 4), ({}, {}, 5, 5)],
)
def test_the_number_of_classes_is_the_configs(network, data, given, classes):
    content = {"network": {"centernet_ofa_resnet50": network}, "dataloader": {"voc": {"root": "mine", "holdout": 1, **data}}}
    assert latency.model_of(configs.from_dict(content, "mine"), num_classes=given).num_classes == classes


def test_every_layer_is_in_its_place(counted, monkeypatch):
    """With a layer's multiply-accumulates for its time, the latency of a path is its FLOPs."""
    batch = ofa_resnet50(SMALL).sample_many(np.random.default_rng(0), 100)
    assert (counted(batch) == MODELS[0].flops(batch)).all()
    monkeypatch.setattr(latency, "forward_time", lambda output, repeats, synchronize: count_macs(output))
    batch = ofa_resnet50(MODELS[1].backbone).sample_many(np.random.default_rng(0), 100)
    assert (measure(MODELS[1], 1, lambda: None)(batch) == MODELS[1].flops(batch)).all()


def test_a_table_of_an_elastic_neck_holds_its_named_choices(monkeypatch):
    network = CenternetElasticNeck(
        width_scale=0.0625,
        strides=(1, 2, 2, 1),
        deconv_channels=(8, 8),
        up_widths=(0.5, 1.0),
        head_widths=(1.0,),
        resolutions=(32, 48),
    )
    model = network.cost_model(48, 3, "detector")
    monkeypatch.setattr(latency, "forward_time", lambda output, repeats, synchronize: count_macs(output))
    table = measure(model, 1, lambda: None, make=lambda path: detector_of(network, 3, path))
    assert table.stem.shape[3:] == (1, 1, 1, 2) and table.head.shape == (3, 2, 2, 1, 2)
    batch = network.space.sample_many(np.random.default_rng(0), 50)
    assert (table(batch) == model.flops(batch)).all()


def test_a_backbone_without_layers_is_one_sentence():
    class Whole(Model):
        channels = 8

    with pytest.raises(UserError, match="needs a backbone based on networks.resnet50.LayeredBackbone, got Whole"):
        measure(MODELS[0], 1, lambda: None, make=lambda path: Detector(MODELS[0].head, SMALL, backbone=Whole(name="")))


def test_validation_compares_whole_networks(counted, monkeypatch):
    monkeypatch.setattr(latency, "forward_time", lambda output, repeats, synchronize: count_macs(output))
    found = latency.validate(counted, MODELS[0], np.random.default_rng(0), 5, 1, lambda: None)
    assert found["mean_relative_error"] == 0 and found["rank_correlation"] == pytest.approx(1)
    assert len(found["measured_ms"]) == 5 and found["predicted_ms"] == found["measured_ms"]


def test_equal_latencies_have_no_rank_correlation(counted, monkeypatch):
    times = iter([5_000_000, 7_000_000])
    monkeypatch.setattr(latency, "forward_time", lambda output, repeats, synchronize: next(times))
    one = product_space("one path", (2,), (1.0,), (0.35,), SMALL, elastic_stem=False)
    assert one.size() == 1
    found = latency.validate(counted, MODELS[0], np.random.default_rng(0), 2, 1, lambda: None, one)
    assert found["rank_correlation"] is None and found["measured_ms"] == [5, 7]


def test_a_table_goes_through_its_file_and_is_a_cost_like_others(counted, tmp_path):
    file = tmp_path / "latency.json"
    latency.write(file, counted, MODELS[0], "cpu", 1, {})
    again, space = read(file, MODELS[0]), ofa_resnet50(SMALL)
    least, most = cost_range(space, again)
    batch = sample_within(space, again, least, (least + most) / 2, 50, np.random.default_rng(0))
    assert (again(batch) == counted(batch)).all() and again(batch).max() < (least + most) / 2
    with pytest.raises(UserError, match="is for Geometry"):
        read(file, MODELS[1])
    with pytest.raises(UserError, match="is for images of 64 x 96"):
        read(file, CostModel(64, 3, "detector", SMALL))
    file.write_text(json.dumps({"format": "another"}))
    with pytest.raises(UserError, match="latency.json is not a valid latency table .*another"):
        read(file, MODELS[0])
    with pytest.raises(ValueError, match="shapes"):
        Latency.from_json(counted.to_json() | {"head": [1]})


@pytest.fixture
def config(tmp_path):
    network = {"width_scale": 0.0625, "strides": [1, 2, 2, 1], "deconv_channels": [8, 8], "head_channels": 8}
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"network": {"centernet_ofa_resnet50": network}, "dataloader": {"voc": {"holdout": 10}}}))
    return str(file)


def test_the_command_measures_this_device(config, tmp_path, capsys):
    file = tmp_path / "latency.json"
    line = ["measure-latency", "-f", config, "-o", str(file), "-c", "cpu", "--image-size", "64", "96", "--repeats", "1"]
    assert main([*line, "--paths", "4", "--classes", "3"]) == 0
    said = capsys.readouterr().out
    assert "4 random paths on cpu: mean relative error" in said and "--classes" not in said
    assert main([*line, "--paths", "2"]) == 0
    assert "the head was measured with 20 classes; --classes sets the number" in capsys.readouterr().out
    assert main([*line, "--paths", "4", "--classes", "3"]) == 0
    table = read(file, MODELS[0])
    assert (table.stem > 0).all() and all((t > 0).all() for t in table.first) and (table.head > 0).all()
    assert len(json.loads(file.read_text())["validation"]["measured_ms"]) == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-size", "50"], "--image-size must be multiples of the detector's stride 16, got 50 50"),
        (
            ["--image-size", "64", "64", "64"],
            "--image-size must be a side, or height and width, of at most 16384 pixels, got 64 64 64",
        ),
        (["--repeats", "0"], "--repeats must be in [1, 1000000], got 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(config, flags, message, tmp_path, capsys):
    assert main(["measure-latency", "-f", config, "-o", str(tmp_path / "l.json"), "-c", "cpu", *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
