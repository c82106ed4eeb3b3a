"""How a batch is divided among processes: the mini-batch that a run began with is kept."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

from nnabla_detofa import config as configs
from nnabla_detofa.backend import launch
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import execution, profiles
from nnabla_detofa.paper import run as paper_run
from nnabla_detofa.paper.experiments import DETOFA
from nnabla_detofa.paper.run import Run
from nnabla_detofa.training import mini_batch

ROOT = Path(__file__).parents[2]


def test_a_run_keeps_the_mini_batch_that_it_began_with(tmp_path):
    config = configs.load(tiny.config_file())
    assert [mini_batch.mini_batch(config, n, tmp_path) for n in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(UserError, match=r"hparams.batch_size must be a multiple of .* \(1 x 3\), got 4"):
        mini_batch.mini_batch(config, 3, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert mini_batch.mini_batch(config, 1, tmp_path) == 4
    with pytest.raises(UserError, match="was started with mini-batches of 4, which 2 processes cannot make of 4 images"):
        mini_batch.mini_batch(config, 2, tmp_path)
    assert mini_batch.mini_batch(config, 2, tmp_path, restart=True) == 2
    said = configs.load(tiny.config_file(), ["hparams.mini_batch=2"])
    assert [mini_batch.mini_batch(said, n, tmp_path) for n in (1, 2)] == [2, 2]


def test_all_cores_are_taken_as_far_as_the_numbers_stay_the_same(tmp_path, monkeypatch):
    def most(cores, *overrides):
        return mini_batch.most_processes(configs.load(tiny.config_file(), overrides), cores, tmp_path)

    assert [most(8), most(8, "hparams.mini_batch=4")] == [1, 1]
    assert [most(cores, "hparams.mini_batch=1") for cores in (1, 2, 3, 4, 8)] == [1, 2, 2, 4, 4]
    assert most(8, "hparams.mini_batch=2", "hparams.batch_size=12") == 6
    started = []
    monkeypatch.setattr(launch, "cores", lambda: 3)
    monkeypatch.setattr(launch, "can_launch", lambda: True)
    monkeypatch.setattr(launch, "launch", lambda processes, command: started.append((processes, command[3:])) or 0)
    line = [
        "-f",
        str(tiny.config_file()),
        "-c",
        "cpu",
        "-o",
        str(tmp_path / "run"),
        "--processes",
        "auto",
        "hparams.mini_batch=2",
    ]
    assert main(line) == 0 and started == [(2, ["train", *line])]


@pytest.mark.parametrize(
    "name", ["digits_detofa", "digits_pretrain", "digits_pretrain_fullnet", "digits_pretrain_ps", "bccd_detofa"]
)
def test_the_small_configs_give_one_process_and_two_the_same_bits(name, tmp_path):
    config = configs.load(ROOT / "configs" / f"{name}.json")
    assert {mini_batch.mini_batch(config, processes, tmp_path) for processes in (1, 2)} == {config.hparams.mini_batch}
    assert mini_batch.most_processes(config, 2, tmp_path) == 2 and config.args.evaluation_processes is None


def test_a_run_of_other_mini_batches_is_no_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(paper_run, "RUNS", tmp_path)

    def run():
        return Run(profiles.load("demo"), "digits", DETOFA, 0)

    for name, content in (("config", run().config.to_dict()), ("summary", {})):
        (tmp_path / "by-hand").mkdir(exist_ok=True)
        (tmp_path / "by-hand" / f"{name}.json").write_text(json.dumps(content))
    assert run().folder == tmp_path / "by-hand" and run().finished
    (tmp_path / "by-hand" / "mini_batch.json").write_text('{"mini_batch": 4, "processes": 2}')
    assert run().folder == tmp_path / "profiles" / "demo" / "digits-detofa-0" and not run().finished
    shutil.copytree(tmp_path / "by-hand", run().folder)
    assert not run().finished
    with pytest.raises(UserError, match="a run with mini-batches of 4 images that its config does not set"):
        execution.complete([run()], 1)
