"""A space whose up-convolutions and heads are elastic runs the whole pipeline from a config, stop and resume included."""

import json
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.methods.algorithm1 import DetOFASearcher
from nnabla_detofa.methods.build import make_model
from nnabla_detofa.networks import weights
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.runs.run_folder import searched_space

NAME = "centernet_elastic_neck"


def content(root) -> dict:
    config = detofa_config(root)
    config["network"] = {NAME: config["network"]["centernet_ofa_resnet50"]}
    config["hparams"] |= {"epochs": 1, "buckets": 2, "paths_per_operation": 1, "heldout_paths_per_bucket": 2}
    config["hparams"]["operation_pruning"] = {"strategy": "flops_score_bucket", "r_op": 0.5}
    return config


def test_its_weights_are_not_those_of_the_ordinary_network(tmp_path):
    nets = [make_model(configs.from_dict(some, "one"), 10) for some in (content("digits"), detofa_config("digits"))]
    weights.save(nets[0], tmp_path / "neck.h5")
    with pytest.raises(
        UserError, match="holds weights of the network 'centernet_elastic_neck', but the config's network is one of"
    ):
        weights.load(nets[1], tmp_path / "neck.h5")


def test_progressive_shrinking_makes_the_neck_smaller_with_the_widths():
    config = content("digits") | {"args": {"runner": "ofa_ps"}}
    phases = training_phases(configs.from_dict(config, "ps"))
    sizes = [[len(values) for _, values in phase.space.named] for phase in phases[1:]]
    assert sizes == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [3, 3, 3], [3, 3, 3]]


@pytest.mark.thorough
def test_it_runs_the_whole_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_digits("digits", train=12, val=4, test=4, image_size=64, crops_train=0, crops_val=0)
    Path("neck.json").write_text(json.dumps(content("digits")))

    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DetOFASearcher, "path_thresholds", stop)
        assert main(["train", "neck.json", "-o", "run"]) == 130
    assert main(["train", "neck.json", "-o", "run"]) == 0
    space = searched_space(Path("run"), configs.load("neck.json"))
    removed = [operation for operation in json.loads(Path("run/operations.json").read_text())["removed"] if len(operation) == 2]
    assert removed and all(value not in dict(space.named)[name] for name, value in removed)
    assert "named" in json.loads(Path("run/subnet_1.json").read_text())["path"]
    (image, *_) = Path("digits/JPEGImages").glob("test_*")
    for command in (
        ["train", "neck.json", "--dry-run"],
        ["inspect", "run"],
        ["report", "run"],
        ["search", "run", "--flops", "3M"],
        ["evaluate", "run", "--detector", "subnet_1"],
        ["finetune", "run", "--detector", "subnet_1", "--epochs", "1", "-o", "tuned"],
        ["export", "run", "--detector", "subnet_1", "-o", "subnet.nnp"],
        ["detect", "subnet.nnp", str(image), "-o", "detections"],
        ["measure-latency", "-f", "neck.json", "--classes", "10", "--repeats", "1", "--paths", "2", "-o", "latency.json"],
        ["search", "run", "--latency", "10s", "--latency-table", "latency.json"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
