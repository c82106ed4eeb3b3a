"""A space whose paths choose their input resolution runs the whole pipeline from a config, stop and resume included."""

import json
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa.cli.program import main
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.methods.algorithm1 import DetOFASearcher

NAME = "centernet_elastic_neck"


def content(root) -> dict:
    config = detofa_config(root)
    settings = {"up_widths": [1.0], "head_widths": [1.0], "resolutions": [32, 48, 64]}
    config["network"] = {NAME: config["network"]["centernet_ofa_resnet50"] | settings}
    config["hparams"] |= {"epochs": 1, "buckets": 2, "paths_per_operation": 1, "heldout_paths_per_bucket": 2, "mini_batch": 2}
    config["hparams"]["operation_pruning"] = {"strategy": "none"}
    config["hparams"]["search"] |= {"budgets": ["0.6M", "5M"]}
    return config


def read(file: str) -> dict:
    return json.loads(Path(file).read_text())


@pytest.mark.thorough
def test_it_runs_the_whole_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_digits("digits", train=12, val=4, test=4, image_size=64, crops_train=0, crops_val=0)
    Path("sizes.json").write_text(json.dumps(content("digits")))

    def stop(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DetOFASearcher, "path_thresholds", stop)
        assert main(["train", "sizes.json", "-o", "run"]) == 130
    assert main(["train", "sizes.json", "-o", "run"]) == 0
    subnet = read("run/subnet_1.json")
    assert subnet["flops"] <= 6e5 and subnet["path"]["named"]["resolution"] == 32  # at 48 pixels no path is below 0.66 M
    (image, *_) = Path("digits/JPEGImages").glob("test_*")
    for command in (
        ["train", "sizes.json", "--dry-run"],
        ["inspect", "run"],
        ["report", "run"],
        ["search", "run", "--flops", "0.6M", "-o", "found.json"],
        ["evaluate", "run", "--detector", "subnet_1"],
        ["finetune", "run", "--detector", "subnet_1", "--epochs", "1", "-o", "tuned"],
        ["export", "run", "--detector", "subnet_1", "-o", "subnet.nnp"],
        ["export", "run", "--detector", "subnet_1", "--size", "48", "64", "-o", "other.nnp"],
        ["detect", "subnet.nnp", str(image), "-o", "detections"],
        ["measure-latency", "-f", "sizes.json", "--classes", "10", "--repeats", "1", "--paths", "2", "-o", "latency.json"],
        ["search", "run", "--latency", "10s", "--latency-table", "latency.json"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert read("found.json")["path"]["named"]["resolution"] == 32
    exported, other = read("subnet.nnp.json"), read("other.nnp.json")
    assert exported["input"]["shape"] == [1, 3, 32, 32] and exported["outputs"]["heatmap"] == [1, 10, 8, 8]
    assert (exported["flops"], exported["ap_image_size"]) == (subnet["flops"], [32, 32])
    assert (
        other["flops"] == 3 * exported["flops"] and other["parameters"] == exported["parameters"]
    )  # all maps are 3 times as large
    capsys.readouterr()
    assert main(["measure-latency", "-f", "sizes.json", "--image-size", "64", "-o", "latency.json"]) == 2
    assert "--image-size must be left out" in capsys.readouterr().err
