"""A classification supernet of the user's own is pre-trained from a config, and its backbone starts a detector's."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small import detofa_config, pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa import load_supernet
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.methods.build import make_model
from nnabla_detofa.networks import weights

MODULE = """
from dataclasses import dataclass
from nnabla_detofa.config import OwnClassifier, OwnDetector
from nnabla_detofa.space.geometry import Geometry


class Wider:
    @property
    def geometry(self):
        return Geometry(strides=self.strides, width_scale=self.width_scale, ratios=self.ratios)


@dataclass(frozen=True)
class WiderClassifier(Wider, OwnClassifier):
    ratios: tuple[float, ...] = (0.25, 0.5)


@dataclass(frozen=True)
class WiderDetector(Wider, OwnDetector):
    ratios: tuple[float, ...] = (0.25, 0.5)
"""


@pytest.fixture(autouse=True)
def importable(tmp_path, monkeypatch):
    (tmp_path / "wider_spaces.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("wider_spaces", None)


def with_network(content: dict, name: str, **settings) -> dict:
    (own,) = content["network"].values()
    return content | {"network": {f"wider_spaces:{name}": own | settings}}


@pytest.mark.thorough
def test_it_is_pretrained_and_starts_a_detector(capsys):
    write_digits("digits", train=8, val=4, test=4, image_size=64, crops_train=40, crops_val=20)
    content = with_network(pretrain_config("digits/classification"), "WiderClassifier")
    content["hparams"] |= {"fullnet_epochs": 1, "kd_ratio": 1.0}
    Path("own.json").write_text(json.dumps(content))
    assert main(["train", "own.json", "-o", "run"]) == 0, capsys.readouterr().err
    net = load_supernet("run/supernet.h5")
    assert net.space.geometry.ratios == (0.25, 0.5)
    with pytest.raises(
        UserError, match="records the settings of its network wider_spaces:WiderClassifier, with 10 classes; leave"
    ):
        load_supernet("run/supernet.h5", num_classes=3)
    detection = with_network(detofa_config("digits"), "WiderDetector", weights="run/supernet.h5")
    detector = make_model(configs.from_dict(detection, "own"), 10, "run/supernet.h5")
    theirs = net.get_parameters()
    for name, parameter in detector.backbone.get_parameters().items():
        assert (parameter.d == theirs[name].d).all()
    weights.save(detector, "detector.h5")
    again = load_supernet("detector.h5", task="detection")
    for name, parameter in again.get_parameters().items():
        assert np.array_equal(parameter.d, detector.get_parameters()[name].d)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (
            pretrain_config,
            "WiderDetector",
            "network must be ofa_resnet50, or of its kind, for the runner pretrain, got wider_spaces",
        ),
        (
            detofa_config,
            "WiderClassifier",
            "network must be centernet_ofa_resnet50 or .*, or of their kind, for the runner detofa",
        ),
    ],
)
def test_the_kind_must_fit_the_runner(make, name, words):
    with pytest.raises(UserError, match=words):
        configs.from_dict(with_network(make("digits"), name), "own")


def test_a_file_without_settings_is_one_sentence():
    weights.write("bare.h5", {"a": __import__("nnabla").Variable((1,))}, network="wider_spaces:WiderDetector")
    with pytest.raises(UserError, match="bare.h5 must record the settings of its network 'wider_spaces:WiderDetector', got"):
        load_supernet("bare.h5")
