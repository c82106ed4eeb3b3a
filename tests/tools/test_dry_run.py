"""The dry run: every phase does a step, every number of the schedule is there, nothing is read that is missing or written."""

import json
import shutil
from pathlib import Path as FilePath

import pytest
import tiny
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.methods.build import make_cost
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.tools import data_facts, dry_run
from nnabla_detofa.tools.synthetic import shapes, synthetic

CONFIGS = FilePath(__file__).parents[2] / "configs"
SMALL = {"width_scale": 0.0625}
DETECTOR = {
    "network": {"centernet_ofa_resnet50": SMALL | {"deconv_channels": [8, 8, 8], "head_channels": 8, "weights": "none.h5"}},
    "dataloader": {"voc": {"root": "nowhere", "holdout": 551, "image_size": 64}},
}


def printed(folder, monkeypatch, capsys, content: dict) -> str:
    """What the dry run of a config says, run in an otherwise empty folder."""
    monkeypatch.chdir(folder)
    FilePath("small.json").write_text(json.dumps(content))
    assert main(["-f", "small.json", "--dry-run"]) == 0
    assert [file.name for file in FilePath().iterdir()] == ["small.json"]
    return capsys.readouterr().out


def test_algorithm_1_without_data(tmp_path, monkeypatch, capsys):
    text = printed(tmp_path, monkeypatch, capsys, DETECTOR)
    assert "data folder: nowhere (missing)" in text and "none.h5 (missing)" in text and "path filter: none" in text
    assert "16000 training images (16551 less a holdout of 551)" in text and "published sizes of Pascal VOC" in text
    assert "heatmap (1, 20, 16, 16)" in text and "cell (1, 128)" in text
    assert "batch size 32: 500 steps per epoch (assumed), 35000 in total" in text
    steps = text[text.index("one step of each phase") :]
    assert all(f"  {name}: a path of" in steps for name in ("fullnet", "warm-up", "fine-tuning"))
    assert "doctor small.json  # data or weights are missing" in steps


def test_pre_training_without_data_tries_the_teacher(tmp_path, monkeypatch, capsys):
    phase = {"name": "depth", "depths": [0, 1, 2], "widths": [1.0], "ratios": [0.35], "epochs": 3, "batch_size": 512}
    content = {
        "args": {"runner": "pretrain"},
        "network": {"ofa_resnet50": SMALL},
        "dataloader": {"image_folder": {"root": "nowhere", "image_size": 32, "train_sizes": [32, 48]}},
        "hparams": {"fullnet_epochs": 1, "kd_ratio": 1, "shrinking": [phase, phase | {"name": "again", "sort_channels": True}]},
    }
    text = printed(tmp_path, monkeypatch, capsys, content)
    assert "1281167 training images" in text and "one of 32, 48" in text and "input (1, 3, 48, 48)" in text
    assert "batch size 512: 2502 steps per epoch (assumed), 7506 in total" in text
    assert (
        "1. fullnet: 1 epoch, " in text
        and "2. depth: 3 epochs" in text
        and "distillation from the frozen fullnet, weight 1" in text
    )
    assert "weights of the teacher" in text and "m = 2000 paths per bucket" in text
    assert "  depth with the teacher: a path of" in text and "  again with the teacher: a path of" in text


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("voc", ["x 0.1 at epochs 45, 60", "batch size 32: 485 ", "1. fullnet: 70 ", "2. warm-up: 5 ", "3. fine-tuning: 65 "]),
        ("coco", ["cosine to 0", "batch size 64: 1770 ", "1. fullnet: 140 ", "2. warm-up: 10 ", "3. fine-tuning: 60 "]),
    ],
)
def test_the_papers_numbers_are_there(name, numbers):
    config = configs.load(CONFIGS / f"{name}_detofa.json")
    facts = data_facts.data_facts(config)
    space, cost = ofa_resnet50(), make_cost(config, facts.num_classes, config.dataloader.image_size)
    text = "\n".join(
        [*dry_run.phase_lines(facts, training_phases(config)), *dry_run.search_lines("detofa", config.hparams, space, cost)]
    )
    numbers = [
        *numbers,
        "Adam, rate 0.0005 ",
        "m = 100 ",
        "500 in total",
        "80 for training and 20 for validation",
        "r_op1 0.1 ",
        "r_op2 0.3 ",
        "r_path 0.25",
    ]
    numbers += ["500 generations", "population 100", "parents 25%", "mutation 0.1", "50% mutants", "not fine-tuned"]
    assert [number for number in numbers if number not in text] == []


def test_an_unknown_split_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    FilePath("small.json").write_text(json.dumps(DETECTOR))
    assert main(["-f", "small.json", "--dry-run", 'dataloader.voc.train=["mine"]']) == 2
    assert "the size of its split mine is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("voc_detofa", 'hparams.search.budgets=["1M"]', r"holds 0.001 GFLOPs, which is below the smallest path; reachable are"),
        (
            "voc_detofa",
            "hparams.batch_size=100000",
            "the batch_size of the phase fullnet must be at most the number of training images, 15551, got 100000",
        ),
        ("imagenet_pretrain", "hparams.paths=3", "hparams.paths must be 0, or at least 8 for each of the 5 buckets, got 3"),
        ("imagenet_pretrain", "network.ofa_resnet50.num_classes=-1", "num_classes must be"),
    ],
)
def test_what_the_run_would_refuse_the_dry_run_refuses(name, override, message):
    with pytest.raises(UserError, match=message):
        list(dry_run.dry_run(configs.load(CONFIGS / f"{name}.json", [override])))


@pytest.mark.parametrize(
    "fault, message",
    [
        (lambda root: (root / "JPEGImages/train_00001.jpg").unlink(), "train_00001.jpg is missing"),
        (lambda root: (root / "JPEGImages/test_00001.jpg").write_bytes(b""), "test_00001.jpg is not a readable image"),
        (lambda root: (root / "Annotations/val_00001.xml").write_text("<annotation>"), "val_00001.xml is not well-formed XML"),
        (
            lambda root: shutil.rmtree(root / "ImageSets"),
            "must contain a dataset in VOC layout .*, and so no 'VOC2007/trainval'",
        ),
    ],
)
def test_a_data_folder_that_is_there_must_be_sound(tmp_path, fault, message):
    """The sizes of published data sets are assumed only where the folder is missing."""
    root = shutil.copytree(tiny.digits(), tmp_path / "data", ignore=shutil.ignore_patterns("classification"))
    splits = {name: [name] for name in ("train", "val", "test")}
    content = detofa_config(root)
    fault(root)
    content["dataloader"]["voc"] |= splits if (root / "ImageSets").is_dir() else {"train": ["VOC2007/trainval"]}
    with pytest.raises(UserError, match=message):
        next(dry_run.dry_run(configs.from_dict(content, "c")))


def test_steps_that_memory_does_not_hold_are_not_tried(monkeypatch):
    config = configs.from_dict(DETECTOR | {"args": {"runner": "fullnet"}}, "c")
    params = int(config.network.cost_model(64, 20, "detector").params([config.network.space.largest])[0])
    with (
        monkeypatch.context() as patched,
        pytest.raises(UserError, match="their values and gradients need .* MiB; .* are free"),
    ):
        patched.setattr(dry_run, "free_memory", lambda: 8 * params - 1)
        next(dry_run.dry_run(config))
    for free, tried in ((8 * params, False), (None, True)):
        with monkeypatch.context() as patched:
            patched.setattr(dry_run, "free_memory", lambda free=free: free)
            text = "\n".join(dry_run.dry_run(config))
        assert ("no step is tried: it needs" in text) is not tried and ("fullnet: a path of" in text) is tried


def test_many_buckets_and_budgets_are_not_all_listed():
    few, many = (dry_run._in_gflops([1e9 * number for number in range(count)]) for count in (21, 1001))
    assert few.endswith("19, 20") and many.endswith("19, 20, ... (1001 in all)")


@pytest.mark.parametrize("budget", ["2M", "1G"])
def test_a_budget_above_the_largest_path_is_noted(tmp_path, monkeypatch, capsys, budget):
    text = printed(tmp_path, monkeypatch, capsys, DETECTOR | {"hparams": {"search": {"budgets": [budget]}}})
    assert ("  a budget above the largest path bounds nothing" in text) is (budget == "1G")


@pytest.mark.parametrize("file", ["voc_detofa", "digits_detofa", "digits_pretrain", "digits_neck"])
def test_the_shapes_are_those_of_the_synthetic_arrays(file):
    config = configs.load(CONFIGS / f"{file}.json")
    assert shapes(config, 3) == [array.shape for array in synthetic(config, 3)]


@pytest.mark.parametrize(
    "given, found, line",
    [
        (None, ("cat", "dog"), "  classes, from the dataset: cat, dog"),
        (["dog", "cat"], ("dog", "cat"), "  classes: dog, cat"),
        (None, tuple(map(str, range(30))), "  classes, from the dataset: 0, 1, 2, 3, 4,"),
        (None, (), None),
    ],
)
def test_the_classes_are_listed_with_their_origin(given, found, line):
    content = detofa_config("data")
    content["dataloader"]["voc"]["classes"] = given
    facts = data_facts.DataFacts(len(found) or 20, 10, 5, 5, "" if found else "no data", found)
    lines = [text for text in dry_run.data_lines(configs.from_dict(content, "c"), facts) if text.startswith("  classes")]
    assert len(lines) == bool(line) and all(text.startswith(line) for text in lines)
    assert ("(30 in all)" in "".join(lines)) is (len(found) == 30)
