"""Algorithm 1 end to end on a few tiny images: it finishes, repeats itself, goes on after a stop, and speaks clearly."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path as FilePath

import forking
import numpy as np
import pytest
import tiny
from PIL import Image
from small import detofa_config
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.coco import write_coco
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPaths
from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import SearchSpace
from nnabla_detofa.tools.dry_run import written_files
from nnabla_detofa.tools.report import write_report

pytestmark = pytest.mark.thorough

GEOMETRY = Geometry(width_scale=0.0625, strides=(1, 2, 2, 1))
REPOSITORY = FilePath(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return tiny.digits()


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    """A config file whose whole run takes seconds."""
    content = detofa_config(data)
    content["hparams"] |= {"buckets": 2, "heldout_paths_per_bucket": 2, "r_path": 0.5}  # some paths of few are rejected
    content["hparams"]["search"]["generations"] = 2
    file = tmp_path_factory.mktemp("config") / "tiny.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["-f", str(config), "-o", str(folder)]) == 0
    return folder


def results(folder: FilePath) -> dict:
    """The summary without the times, and the final weights' bytes."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    return summary | {"paths": [json.loads(line) for line in (folder / "held_out_paths.jsonl").read_text().splitlines()]}


def test_the_summary_says_what_algorithm_1_did(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"flops", "params", "loss", "ap50"} <= set(summary["fullnet"])
    assert len(summary["subnets"]) == 2 == len(summary["kendall_tau"])
    for subnet in summary["subnets"]:
        assert subnet["flops"] <= subnet["budget"]
        assert 0 <= subnet["ap50"] <= 1 and 0 <= subnet["ap50_area"] <= 1
    log = (finished / "log.txt").read_text()
    assert all(f"AP50 {row['ap50']:.3f}, AP50 (area) {row['ap50_area']:.3f}" in log for row in summary["subnets"])
    assert summary["total_operations"] == 108
    assert summary["pruned_operations"] == len(summary["removed_operations"]) > 20
    assert 0 < summary["rejected_share"] < 1
    assert summary["seconds"].keys() >= {"fullnet", "warm-up", "fine-tuning", "search"}
    log = (finished / "log.txt").read_text()
    assert "pruned" in log and "rejected" in log and "Kendall's tau" in log and "thresholds" in log


def test_the_dry_run_knows_the_files(config, finished):
    expected = {name.rstrip("/") for name in written_files(configs.load(config))}
    assert {file.name for file in finished.iterdir()} == expected


def test_trained_and_found_paths_are_of_the_pruned_space(finished):
    space = SearchSpace.from_json(json.loads((finished / "operations.json").read_text())["space"])
    paths = EvaluatedPaths.read(finished / "paths_again.jsonl", space.geometry)
    assert space.contains_many(paths.batch).all()
    summary = json.loads((finished / "summary.json").read_text())
    assert all(Path.from_ofa(subnet["path"], space.geometry) in space for subnet in summary["subnets"])


def test_a_finished_run_can_be_searched_under_other_bounds(finished, tmp_path):
    """Asked for a budget of the run's own, it finds the run's subnet again, by the same winners and losses."""
    file, subnet = tmp_path / "found.json", json.loads((finished / "summary.json").read_text())["subnets"][-1]
    assert main(["search", str(finished), "-c", "cpu", "--flops", str(subnet["budget"]), "-o", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["compared_by"] == "loss" and found["path"] == subnet["path"]
    losses = {item.path: item.loss for item in EvaluatedPaths.read(finished / "winners.jsonl", GEOMETRY).items}
    for row in found["rows"]:
        assert row["loss"] >= found["loss"]
        assert row["loss"] == pytest.approx(losses[Path.from_ofa(row["path"], GEOMETRY)])


def test_the_report_is_written_from_files_alone(finished, tmp_path):
    files = write_report(finished, tmp_path / "report")
    assert all(file.stat().st_size > 0 for file in files)
    table = (tmp_path / "report" / "table.md").read_text()
    assert table.count("| subnet") == 6 and "rejected paths" in table
    assert f"Made by `detofa report {finished} -o {tmp_path / 'report'}` at " in table
    assert (tmp_path / "report" / "config.json").read_text() == (finished / "config.json").read_text()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_report_replaces_an_earlier_one_and_nothing_else(finished, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"and {tmp_path} holds {name} but no table.md: choose another"):
        write_report(finished, tmp_path)
    assert (tmp_path / name).read_text() == "{}"
    (tmp_path / "table.md").touch()
    write_report(finished, tmp_path)


def test_tensorboard_shows_the_run(finished):
    """Losses, rates, rejected paths, AP, Kendall's tau, and pictures with detections."""
    tags, sizes = set(), set()
    for file in (finished / "tensorboard").iterdir():
        for event in LegacyEventFileLoader(str(file)).Load():
            tags |= {value.tag for value in event.summary.value}
            pictures = [value.image for value in event.summary.value if value.image.encoded_image_string]
            sizes |= {Image.open(io.BytesIO(picture.encoded_image_string)).size for picture in pictures}
    wanted = {"loss/fullnet", "heatmap/warm-up", "learning_rate/fine-tuning", "share of paths rejected/fine-tuning"}
    wanted |= {"AP50 on the test split/subnet 1", "AP50 on the test split/fullnet", "Kendall's tau of each bucket/path filter"}
    wanted |= {"pair loss/path filter", "pair loss on validation paths/path filter again", "detections of subnet 1/1"}
    assert wanted <= tags, wanted - tags
    assert sizes == {(640, 640)}


def test_evaluate_repeats_the_figures_of_the_run(finished, tmp_path, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    assert main(["evaluate", str(finished), "-o", str(tmp_path / "ap.json")]) == 0
    table, found = capsys.readouterr().out, json.loads((tmp_path / "ap.json").read_text())
    assert found["fullnet"]["ap50_per_class"] == summary["fullnet"]["ap50_per_class"]
    assert [found[f"subnet_{i}"]["ap50"] for i in (1, 2)] == [subnet["ap50"] for subnet in summary["subnets"]]
    assert table.startswith("| class | fullnet AP50 | fullnet AP50 (area) | subnet_1 AP50") and table.count("\n|") == 1 + 10 + 1
    path = tmp_path / "path.json"
    path.write_text(json.dumps(summary["subnets"][0]["path"]))
    options = ["--detector", str(path), "--flip", "--scales", "1", "1.5", "-o", str(tmp_path / "more.json")]
    assert main(["evaluate", str(finished), *options]) == 0
    assert 0 <= json.loads((tmp_path / "more.json").read_text())[str(path)]["ap50"] <= 1
    for wrong, message in (
        (
            ["--detector", "subnet_9"],
            "a detector of .* must be fullnet, subnet_1, .* or a JSON file with a path, got .subnet_9",
        ),
        (["--scales", "0"], r"--scales must be numbers in \(0, 8\], got 0"),
        (["dataloader.voc.root=nowhere"], "nowhere is not a folder"),
    ):
        capsys.readouterr()
        assert main(["evaluate", str(finished), *wrong]) == 2
        assert re.search(message, capsys.readouterr().err)
    path.write_text('{"d": [0]}')
    assert main(["evaluate", str(finished), "--detector", str(path)]) == 2
    capsys.readouterr()
    renamed = 'dataloader.voc.classes=["9","8","7","6","5","4","3","2","1","0"]'
    for command in (["evaluate", str(finished)], ["search", str(finished), "-o", str(tmp_path / "other.json")]):
        assert main([*command, renamed]) == 2
        assert "were trained for the classes 0, 1, 2" in capsys.readouterr().err
    assert main(["evaluate", str(finished), "-o", str(tmp_path / "no" / "x.json")]) == 2
    assert "--output must be a file in an existing folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "config.json is not JSON" in capsys.readouterr().err


def test_a_run_on_data_in_coco_format(config, data, finished, tmp_path):
    """The same photographs: only how boxes end and how AP is counted differ."""
    root = write_coco(data, tmp_path / "coco", ("train", "val", "test"))
    content = json.loads(config.read_text())
    voc = content["dataloader"].pop("voc")
    splits = {name: {"annotations": f"annotations/instances_{name}.json", "images": name} for name in ("train", "val", "test")}
    content["dataloader"]["coco"] = {**voc, **splits, "root": str(root)}
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    few = ["hparams.epochs=1", "hparams.search.generations=1"]
    assert main(["-f", str(file), "-o", str(tmp_path / "run"), *few]) == 0
    summary = results(tmp_path / "run")
    assert {"ap", "ap50", "ap_per_class", "coco"} <= set(summary["fullnet"])
    assert summary["fullnet"]["loss"] == pytest.approx(results(finished)["fullnet"]["loss"], rel=0.2)
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "report")]) == 0
    assert "| AP50 | AP | AP75 |" in (tmp_path / "report" / "table.md").read_text()


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(config, finished, tmp_path):
    assert main(["-f", str(config), "-o", str(tmp_path / "again"), "args.evaluation_processes=1"]) == 0
    assert results(tmp_path / "again") == results(finished)
    assert main(["-f", str(config), "-o", str(tmp_path / "other"), "args.seed=1", "args.runner=fullnet"]) == 0
    other = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert other["fullnet"]["loss"] != results(finished)["fullnet"]["loss"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_result(config, finished, tmp_path):
    command = [sys.executable, "-m", "nnabla_detofa", "run", "-f", str(config), "-o", str(tmp_path / "run")]
    for wait_for in ("fullnet/state.json", "paths.jsonl", "path_filter.h5", None):
        process = forking.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if wait_for is None:
            assert process.wait() == 0
            break
        while not (tmp_path / "run" / wait_for).exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode in (0, 130), errors
    assert results(tmp_path / "run") == results(finished)


def test_a_finished_run_is_not_done_again(config, finished):
    before = {file: file.stat().st_mtime_ns for file in finished.glob("*.jsonl")}
    assert main(["-f", str(config), "-o", str(finished)]) == 0
    assert {file: file.stat().st_mtime_ns for file in finished.glob("*.jsonl")} == before


def broken_copy(data: FilePath, target: FilePath) -> FilePath:
    shutil.copytree(data, target)
    return target


def refused(capsys, *arguments: str) -> str:
    """The one sentence of a command that must fail with status 2."""
    assert main(list(arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_bad_input_gets_one_sentence(config, data, finished, tmp_path, capsys):
    run = ["-f", str(config), "-o", str(tmp_path / "run")]
    assert "hparams.epoch" in refused(capsys, *run, "hparams.epoch=3") and not (tmp_path / "run").exists()
    assert "No such" in refused(capsys, "-f", "none.json") or True
    error = refused(capsys, *run, "hparams.search.budgets=[1000]")
    assert "below the smallest path" in error and "reachable are" in error
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    assert "bad.h5" in refused(capsys, *run, f"network.centernet_ofa_resnet50.weights={tmp_path / 'bad.h5'}")
    assert "bad.h5" in refused(capsys, *run, f"hparams.filter.weights={tmp_path / 'bad.h5'}")
    before = (finished / "summary.json").read_bytes()
    assert "below the smallest" in refused(
        capsys, "-f", str(config), "-o", str(finished), "--restart", "hparams.search.budgets=[1000]"
    )
    assert (finished / "summary.json").read_bytes() == before  # a mistake must not cost the run that was there
    assert "another config (differing: hparams.epochs)" in refused(
        capsys, "-f", str(config), "-o", str(finished), "hparams.epochs=9"
    )

    broken = broken_copy(data, tmp_path / "xml")
    annotation = sorted((broken / "Annotations").iterdir())[0]
    annotation.write_text(annotation.read_text()[:100])
    assert annotation.name in refused(capsys, *run, f"dataloader.voc.root={broken}")

    broken = broken_copy(data, tmp_path / "jpeg")
    image = sorted((broken / "JPEGImages").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-200])
    assert image.name in refused(capsys, *run, f"dataloader.voc.root={broken}", "--restart")


def test_a_box_outside_its_image_is_clipped_with_a_warning(data, tmp_path, caplog):
    from nnabla_detofa.data.voc import VOCDataset

    root = broken_copy(data, tmp_path / "boxes")
    name = VOCDataset(root, "train").image_ids[0]
    annotation = root / "Annotations" / f"{name}.xml"
    text = annotation.read_text()
    start, end = text.index("<xmax>") + 6, text.index("</xmax>")
    annotation.write_text(text[:start] + "999" + text[end:])
    dataset = VOCDataset(root, "train")
    assert any(name in record.getMessage() for record in caplog.records)
    assert dataset.load(0).boxes[:, 2].max() <= 63


def test_the_paper_scale_config_without_data_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if not FilePath("data/VOCdevkit").exists():
        error = refused(capsys, "-f", "configs/voc_detofa.json", "-c", "cpu")
        assert "VOCdevkit" in error and np.char.count(error, "\n") == 0
