"""Fine-tuning a path alone: it is training that path of the supernet; it goes on, and its folder is a run's."""

import json
import shutil

import h5py
import nnabla as nn
import numpy as np
import pytest
from tiny_run import finished_run

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.tools.evaluate import detectors_of, open_detector, static_detector
from nnabla_detofa.tools.finetune import Tuner, check_request, tuning_config, tuning_phase
from nnabla_detofa.tools.inspect import describe
from nnabla_detofa.tools.inspect_text import text
from nnabla_detofa.training.loop import OnePath, new_optimizer, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "digits"
    write_digits(data, train=8, val=3, test=3, image_size=64, crops_train=40, crops_val=20)
    return finished_run(tmp_path_factory.mktemp("runs") / "tiny", data)


def command(run, output, *more: str) -> list[str]:
    return ["finetune", str(run), "--detector", "subnet_1", "--epochs", "2", "-o", str(output), "-c", "cpu", *more]


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "first"
    assert main(command(run, folder)) == 0
    return folder


def trained(folder) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(folder / "finetuned" / "weights.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_the_path_alone_learns_what_the_path_in_the_supernet_would(run):
    """Two steps of the same loop on the same batches: the slice of the supernet's weights, and the rest of it untouched."""
    opened = open_detector(run, "subnet_1")
    config, path, sets = tuning_config(opened.config, epochs=2), opened.path, opened.sets
    net = static_detector(config.network, opened.net, path)
    before = {name: p.d.copy() for name, p in opened.net.get_parameters().items()}
    phase = tuning_phase(config, opened.net.space)
    for trained_net in (net, opened.net):
        optimizer = new_optimizer(trained_net, phase.solver, phase.schedule(len(sets.train)))
        loader = Loader(sets.train, sets.train_item, 4, seed=0, workers=0)
        inputs = [nn.Variable(array.shape) for array in loader.batch(0)]
        train(trained_net, optimizer, OnePath(path), loader, inputs, range(2))
    after, moved = opened.net.get_parameters(), 0
    for name, p in net.get_parameters().items():
        part = tuple(slice(0, size) for size in p.shape)
        np.testing.assert_allclose(p.d, after[name].d[part], atol=1e-6, err_msg=name)
        moved += not np.array_equal(p.d, before[name][part])
        rest = after[name].d.copy()
        rest[part] = before[name][part]
        np.testing.assert_array_equal(rest, before[name])
    assert moved > 50


def test_its_schedule_is_the_cosine_from_a_tenth_of_the_runs_rate(run):
    config = configs.from_dict(json.loads((run / "config.json").read_text()), "tiny")
    phase = tuning_phase(tuning_config(config, epochs=5), None)
    rates = [phase.schedule(8).get_learning_rate(step) for step in (0, 5, 10)]  # batches of 4: ten steps
    assert rates == pytest.approx([1e-4, 0.5e-4, 0])
    assert tuning_config(config, 5, lr=0.02).optimizer.train.lr == 0.02
    assert config.optimizer.train.lr == 1e-3 and config.hparams.epochs == 2


@pytest.mark.thorough
def test_its_folder_is_a_runs(run, tuned, tmp_path, capsys):
    results = {name: json.loads((tuned / f"{name}.json").read_text()) for name in ("before", "finetuned")}
    path = json.loads((run / "subnet_1.json").read_text())["path"]
    assert detectors_of(tuned) == ["finetuned"] and results["finetuned"]["path"] == path
    assert results["finetuned"]["loss"] < results["before"]["loss"]
    events = list((tuned / "tensorboard").rglob("*tfevents*"))
    assert events and "finetuned step 2: loss " in (tuned / "log.txt").read_text()
    capsys.readouterr()

    assert main(["evaluate", str(tuned), "-c", "cpu", "-o", str(tmp_path / "ap.json")]) == 0
    found = json.loads((tmp_path / "ap.json").read_text())
    assert found["finetuned"]["ap50_per_class"] == results["finetuned"]["ap50_per_class"]

    file = tmp_path / "tuned.nnp"
    assert main(["export", str(tuned), "--detector", "finetuned", "-o", str(file), "-c", "cpu"]) == 0
    about = json.loads((tmp_path / "tuned.nnp.json").read_text())
    assert about["ap50"] == results["finetuned"]["ap50"] and about["path"] == path
    assert about["parameters"] == results["finetuned"]["params"]

    opened = open_detector(run, "subnet_1")
    own = static_detector(opened.network, opened.net, opened.path).get_parameters()
    assert {name: array.shape for name, array in trained(tuned).items()} == {name: p.shape for name, p in own.items()}


def test_what_its_folder_says(run, tuned, tmp_path, capsys):
    results = {name: json.loads((tuned / f"{name}.json").read_text()) for name in ("before", "finetuned")}
    found = describe(tuned)
    assert found["finished"] and found["fine_tuning"] == {"run": "tiny", "detector": "subnet_1", "epochs": 2}
    assert [(row["name"], row["ap50"]) for row in found["detectors"]] == [(n, r["ap50"]) for n, r in results.items()]
    assert [(phase["name"], phase["state"]) for phase in found["phases"]] == [("before", "done"), ("finetuned", "done")]
    assert found["files"]["weights of the detector"].endswith("finetuned/weights.h5")
    shown = " ".join(text(found, 200).split())
    assert f"{tuned}: fine-tuning of subnet_1 of the run tiny, epochs: 2, finished" in shown and "resume" not in shown
    for line, what in (
        (["compare", str(run), str(tuned)], "a comparison"),
        (["report", str(tuned), "-o", str(tmp_path / "out")], "a report"),
        (["search", str(tuned), "-c", "cpu"], "a search"),
    ):
        assert main(line) == 2
        assert f"error: {tuned} is a fine-tuning's folder, which has one detector: {what} needs" in capsys.readouterr().err


@pytest.mark.parametrize("content", [{"a": 1}, [1], "x", None, {}, {"run": 1, "detector": "x", "path": {}, "weights": "x"}])
def test_a_damaged_origin_is_named(content, run, tuned, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    (copy / "origin.json").write_text(json.dumps(content))
    photograph = json.loads((run / "config.json").read_text())["dataloader"]["voc"]["root"] + "/JPEGImages/test_00000.jpg"
    for line in (
        ["evaluate", str(copy), "-c", "cpu"],
        ["evaluate", str(copy), "--detector", "finetuned", "-c", "cpu"],
        ["detect", str(copy), photograph, "-c", "cpu"],
        ["export", str(copy), "--detector", "finetuned", "-o", str(tmp_path / "x.nnp"), "-c", "cpu"],
        ["inspect", str(copy)],
        command(run, copy),
    ):
        capsys.readouterr()
        assert main(line) == 2
        assert f"error: {copy}/origin.json is damaged: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.thorough
def test_the_table_shows_before_and_after(run, tmp_path, capsys):
    assert main(command(run, tmp_path / "again", "--lr", "1e-5")) == 0
    printed = capsys.readouterr().out
    assert (
        "| class | before AP50 | before AP50 (area) | finetuned AP50 | finetuned AP50 (area) |" in printed
        and "| all | " in printed
    )
    assert json.loads((tmp_path / "again" / "config.json").read_text())["optimizer"]["train"]["lr"] == 1e-5


@pytest.mark.thorough
def test_a_stopped_fine_tuning_goes_on(run, tuned, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "callback_on_epoch_end", lambda self: setattr(self.stop, "requested", True))
        assert main(command(run, folder)) == 130
    assert not (folder / "finetuned.json").exists()
    found = describe(folder)
    assert not found["finished"] and [phase["state"] for phase in found["phases"]] == ["done", "under way"]
    shown = " ".join(text(found, 200).split())
    assert "not finished: 1 of 2 phases are done" in shown and "step 2 of 4" in shown
    assert f"resume it with detofa finetune with the same arguments (--detector subnet_1 -o {folder} ...)" in shown
    capsys.readouterr()
    assert main(command(run, folder)) == 0
    assert "finetuned resumes at step 2 of 4" in capsys.readouterr().out
    unbroken = trained(tuned)
    for name, array in trained(folder).items():
        np.testing.assert_array_equal(array, unbroken[name], err_msg=name)
    assert (folder / "finetuned.json").read_text() == (tuned / "finetuned.json").read_text()


def test_other_folders_are_left_alone(run, tuned, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    for line, message in (
        (command(run, run), f"{run} contains a run that is not a fine-tuning; choose another -o"),
        (command(run, run, "--restart"), f"{run} contains a run that is not a fine-tuning; choose another -o"),
        (
            command(run, copy, "--detector", "subnet_2"),
            "contains the fine-tuning of subnet_1 of tiny; choose another -o, or discard it with --restart",
        ),
        (command(run, copy, "--epochs", "3"), "holds a run with another config (differing: hparams.epochs)"),
        (command(run, tmp_path / "new", "--epochs", "0"), "--epochs must be from 1 to 1000000, got 0"),
        (command(run, tmp_path / "new", "--epochs", "9" * 30), "--epochs must be from 1 to 1000000, got 999"),
        (command(run, tmp_path / "new", "--lr", "-1"), "--lr must be positive, got -1.0"),
        (command(run, tmp_path / "new", "--detector", "subnet_7"), "must be fullnet, subnet_1, subnet_2 or a JSON file"),
        (command(tmp_path, tmp_path / "new"), f"{tmp_path} is not the folder of a run: config.json is missing"),
        (["evaluate", str(copy), "--detector", "subnet_1"], f"the only detector of {copy} is finetuned, got subnet_1"),
    ):
        capsys.readouterr()
        assert main(line) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
    assert trained(copy).keys() == trained(tuned).keys()


def test_another_begins_where_one_ended(tuned, tmp_path):
    """A fine-tuned detector can be fine-tuned again."""
    line = ["finetune", str(tuned), "--detector", "finetuned", "--epochs", "1", "-o", str(tmp_path / "more"), "-c", "cpu"]
    assert main(line) == 0
    before = json.loads((tmp_path / "more" / "before.json").read_text())
    assert before == json.loads((tuned / "finetuned.json").read_text())


@pytest.mark.parametrize("entry", ["optimizer.train.schedule=step", "optimizer.train.warmup_steps=5", "hparams.epochs=3"])
def test_settings_that_a_fine_tuning_replaces_are_rejected(entry, tmp_path):
    with pytest.raises(UserError, match=f"{entry.partition('=')[0]} has no effect on a fine-tuning: --epochs and a cosine"):
        check_request(tmp_path, 1, None, ["dataloader.voc.flip=true", entry])
    check_request(tmp_path, 1, None, ["dataloader.voc.flip=true", "optimizer.train.lr=0.1", "hparams.batch_size=2"])
