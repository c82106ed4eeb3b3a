"""Which code computed a run, and that it goes on from, and is used for, no other weights than it began from."""

import json
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa import provenance
from nnabla_detofa.errors import UserError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run in the folder "run", from two weights files."""
    monkeypatch.chdir(tmp_path)
    Path("net.h5").write_bytes(b"one")
    Path("filter.h5").write_bytes(b"two")
    Path("run").mkdir()
    content = detofa_config("data")
    content["network"]["centernet_ofa_resnet50"]["weights"] = "net.h5"
    content["hparams"]["filter"]["weights"] = "filter.h5"
    Path("c.json").write_text(json.dumps(content))
    monkeypatch.setattr(provenance, "revision", lambda: "commit a")
    return configs.load("c.json")


def test_code_is_noted_when_it_goes_on_and_weights_when_it_begins(config, monkeypatch):
    run = Path("run")
    provenance.record(run, config)
    first = provenance.recorded(run)
    assert first["code"] == ["commit a"] and set(first["weights"]) == {"net.h5", "filter.h5"}
    provenance.record(run, config)
    assert provenance.recorded(run) == first and provenance.code_of(run) == "commit a"
    monkeypatch.setattr(provenance, "revision", lambda: "commit b")
    Path("net.h5").write_bytes(b"other")
    provenance.record(run, config)
    assert provenance.code_of(run) == "commit a, then commit b" and provenance.recorded(run)["weights"] == first["weights"]
    (run / "summary.json").touch()
    monkeypatch.setattr(provenance, "revision", lambda: "commit c")
    provenance.record(run, config)
    assert provenance.code_of(run) == "commit a, then commit b", "nothing is computed where a run has finished"


def test_the_beginning_of_an_older_run_is_unknown(config):
    run = Path("run")
    assert provenance.code_of(run) == provenance.UNKNOWN and not provenance.changed_weights(run, config)
    (run / "seconds.json").touch()
    provenance.record(run, config)
    assert provenance.code_of(run) == f"{provenance.UNKNOWN}, then commit a"


def test_changed_weights_are_named_and_gone_ones_are_not(config):
    run = Path("run")
    provenance.record(run, config)
    provenance.refuse_changed_weights(run, config)
    Path("net.h5").write_bytes(b"eno")  # as long as before
    with pytest.raises(UserError, match=r"run holds a run that began from other weights than net.h5 now holds: put those back"):
        provenance.refuse_changed_weights(run, config)
    Path("net.h5").unlink()
    provenance.refuse_changed_weights(run, config)
    Path("net.h5").write_bytes(b"one")
    provenance.refuse_changed_weights(run, config)


def test_a_fine_tuning_has_its_weights_elsewhere(config):
    """It begins from a run's, whose digest is in its origin.json, and not from those of the config."""
    (Path("run") / "origin.json").touch()
    provenance.record(Path("run"), config)
    assert provenance.recorded(Path("run")) == {"code": ["commit a"], "weights": {}}


@pytest.mark.parametrize("content", ["{", "[]", '{"code": [1], "weights": {}}', '{"code": [], "weights": {"net.h5": 1}}'])
def test_a_damaged_file_is_named(config, content):
    (Path("run") / provenance.FILE).write_text(content)
    with pytest.raises(UserError, match="provenance.json"):
        provenance.refuse_changed_weights(Path("run"), config)
