"""A profile of digits with two finished runs, and processes that are forked."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path
from unittest import mock

import forking
import pytest
import tiny
from corpus.case import inside
from small import detofa_config, pretrain_config

from nnabla_detofa.paper import execution, filter_scores, profiles
from nnabla_detofa.paper.experiments import OFA
from nnabla_detofa.paper.run import Run, plan
from nnabla_detofa.path_filter.metrics import bootstrap_interval


@pytest.fixture(autouse=True)
def forked_processes(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", forking.Popen)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Bootstrap intervals from 100 resamples: from the usual 1000 they take seconds in each table of the path filter."""
    monkeypatch.setattr(filter_scores, "bootstrap_interval", partial(bootstrap_interval, resamples=100))


def runs_of_a_branch() -> list[Run]:
    """Our method and the ofa baseline, which branches off it."""
    return plan(profiles.load("small.json"), ("voc",), [OFA], 1, [])


@tiny.made_once("paper")
def finished(folder: Path) -> None:
    """A folder to work in: data, a config, a profile, and the finished runs."""
    folder.mkdir()
    shutil.copytree(tiny.digits(), folder / "digits")
    content = detofa_config("digits")
    content["hparams"]["buckets"] = 2
    pretraining_content = pretrain_config("digits/classification")
    pretraining_content["hparams"]["buckets"] = 2
    pretraining = {"config": "p.json", "supernet": "pretrained/supernet.h5", "path_filter": "pretrained/path_filter.h5"}
    pretraining["fullnet"] = "nowhere.h5"
    needs = [{"path": "digits", "command": "make it"}]
    sizes = {"seeds": 2, "test_paths_per_bucket": 5, "pretraining_paths_per_bucket": 8}
    data_set = {"title": "digits", "config": "tiny.json", "pretraining": pretraining, "needs": needs}
    profile = {"data_sets": {"digits": data_set}, "filter_study": sizes}
    for name, value in {"tiny": content, "p": pretraining_content, "small": profile}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    with inside(folder), mock.patch.object(subprocess, "Popen", forking.Popen):
        execution.complete(runs_of_a_branch(), 2, lambda line: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of `finished` of the module's own."""
    return shutil.copytree(finished(), tmp_path_factory.mktemp("work") / "copy")


@pytest.fixture
def profile(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return profiles.load("small.json")


@pytest.fixture
def done(profile):
    """The two runs as a figure has them run: the baseline as a branch."""
    return runs_of_a_branch()
