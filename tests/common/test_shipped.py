"""Files that are found without a clone: shipped configs and weights, and what lies beside a config."""

import json
import re
from pathlib import Path

import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.common import shipped
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import profiles


def test_a_shipped_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load("digits_detofa", ["hparams.epochs=3"])
    assert (config.name, config.hparams.epochs, str(config.output_path)) == ("digits_detofa", 3, "runs/digits_detofa")
    assert config.network.weights == str(shipped.ROOT / "configs/weights/digits_supernet.h5")
    assert config.dataloader.root.endswith("data/digits")  # in the folder of the repository, if it exists there
    assert configs.load("configs/baselines/digits_ofa.json").config_hash == configs.load("digits_ofa").config_hash


def test_paths_that_exist_from_the_working_folder_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(shipped.ROOT)
    assert configs.load("digits_detofa").network.weights == "configs/weights/digits_supernet.h5"


def test_data_and_weights_are_looked_for_from_the_folder_of_the_config(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "configs", project / "data" / "mine", elsewhere):
        folder.mkdir(parents=True)
    file = project / "configs" / "mine.json"
    (project / "configs" / "mine.h5").touch()
    network = {"centernet_ofa_resnet50": {"weights": "mine.h5"}}
    file.write_text(json.dumps({"network": network, "dataloader": {"voc": {"root": "data/mine", "holdout": 3}}}))
    monkeypatch.chdir(elsewhere)
    config = configs.load(file)
    assert config.network.weights == str(project / "configs" / "mine.h5")
    assert config.dataloader.root == str(project / "data" / "mine")
    assert configs.load(file, ["dataloader.voc.root=data/other"]).dataloader.root == "data/other"


@pytest.mark.parametrize(("name", "near"), [("digit_detofa", "digits_detofa"), ("voc_ofa_p", "voc_ofa_ps")])
def test_the_nearest_shipped_config_is_suggested(name, near):
    with pytest.raises(UserError, match=f"there is no config {name}; did you mean {near}.; shipped are .*bccd_detofa"):
        configs.load(name)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_file_is_suggested_for_its_name(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"mine{suffix}").touch()
    with pytest.raises(UserError, match=f"there is no config mine; did you mean mine{suffix}.$"):
        configs.load("mine")


def test_a_missing_file_is_not_taken_for_a_name():
    with pytest.raises(UserError, match="nowhere.json"):
        configs.load("nowhere.json")


def test_profiles_name_shipped_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretraining = profiles.load("demo").data_sets["digits"].pretraining
    assert pretraining.supernet == str(shipped.ROOT / "configs/weights/digits_supernet.h5")
    assert configs.load(pretraining.config).args.runner == "pretrain"


def test_a_wheel_is_told_to_use_pip(monkeypatch):
    assert shipped.install_command("setup-cuda") == "make setup-cuda"
    monkeypatch.setattr(shipped, "INSTALLED", shipped.ROOT)
    for target in shipped.PIP:
        lock = re.search(r"-r (\S+)", shipped.install_command(target))[1]
        assert Path(lock).parent == shipped.ROOT and Path(lock).is_file()
