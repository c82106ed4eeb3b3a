"""Profiles: what they must hold, and what they need."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import profiles

pytestmark = pytest.mark.thorough


def test_profiles_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error(content) -> str:
        Path("p.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError) as caught:
            profiles.load("p.json")
        return str(caught.value)

    pretraining = {"config": "a", "supernet": "b", "path_filter": "c", "fullnet": "d"}
    entry = {"title": "t", "config": "c", "pretraining": pretraining}
    assert "does not parse" in error("{")
    assert "data_sets must map" in error({})
    assert "must have one key, or voc and coco, got a and b" in error({"data_sets": {"a": entry, "b": entry}})
    assert "data_sets.a.config is missing" in error({"data_sets": {"a": {"title": "t"}}})
    assert "minutes.branch must be in (0, inf), got 0" in error({"data_sets": {"a": entry}, "minutes": {"branch": 0}})
    assert "did you mean starts_runs?" in error({"data_sets": {"a": entry}, "start_runs": True})
    with pytest.raises(UserError, match="must be a name in configs/profiles"):
        profiles.load("nowhere")


def test_the_profiles_beside_the_configs_load():
    repository = Path(__file__).parents[2]
    for file in sorted((repository / "configs" / "profiles").glob("*.json")):
        profile = profiles.load(str(file))
        for data_set in profile.data_sets.values():
            assert configs.load(repository / data_set.config) and configs.load(repository / data_set.pretraining.config)


def test_a_profile_has_a_name_of_its_own(profile, capsys):
    Path("configs/profiles").mkdir(parents=True)
    shutil.copy("small.json", "configs/profiles/taken.json")
    shutil.copy("small.json", "taken.json")
    assert main(["reproduce", "tableA1", "--profile", "taken.json"]) == 2
    assert "taken.json must not have the name of one in configs/profiles" in capsys.readouterr().err
    assert profiles.load("taken").name == profiles.load("configs/profiles/taken.json").name == "taken"
    shutil.rmtree("configs")


def test_needs_are_those_of_what_is_asked_for(profile, tmp_path):
    needs = (profiles.Need("gone", "make it", ("table3",)),)
    with pytest.raises(UserError, match=r"missing: gone \(make it\)"):
        profile.check(replace(profile.data_sets["digits"], needs=needs), (), ["figure5", "table3"])
    profile.check(replace(profile.data_sets["digits"], needs=needs), (), ["figure5"])


def test_figure_8_needs_a_pretrainings_config(profile):
    with pytest.raises(UserError, match="must have args.runner=pretrain, got tiny.json"):
        replace(profile.data_sets["digits"].pretraining, config="tiny.json").load()
