"""Which code computed a run, and that it goes on from, and is used for, no other weights than it began from."""

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.common import version
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.version import __version__
from nnabla_detofa.data import content
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.runs import provenance
from nnabla_detofa.training import start_up


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


def test_code_is_noted_when_it_resumes_and_weights_when_it_starts(config, monkeypatch):
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
    assert provenance.code_of(run) == provenance.UNKNOWN and not provenance.changed_inputs(run, config)
    (run / "seconds.json").touch()
    provenance.record(run, config)
    assert provenance.code_of(run) == f"{provenance.UNKNOWN}, then commit a"


def test_changed_inputs_are_named_and_gone_ones_are_not(config):
    run = Path("run")
    provenance.record(run, config)
    provenance.check_inputs_unchanged(run, config)
    Path("net.h5").write_bytes(b"eno")  # as long as before
    with pytest.raises(UserError, match=r"run holds a run that began before net.h5 changed: restore the previous files"):
        provenance.check_inputs_unchanged(run, config)
    Path("net.h5").unlink()
    provenance.check_inputs_unchanged(run, config)
    Path("net.h5").write_bytes(b"one")
    provenance.check_inputs_unchanged(run, config)


def test_changed_data_are_named_and_gone_ones_are_not(tmp_path, monkeypatch):
    """Of a list, an annotation or a photograph; a copy elsewhere is the same."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    run, root = Path("run"), write_digits("data", train=3, val=2, test=2, image_size=64, crops_train=10, crops_val=10)
    Path("c.json").write_text(json.dumps(detofa_config(root)))

    def changed() -> list[str]:
        content.forget_digests()
        return provenance.changed_inputs(run, configs.load("c.json"))

    provenance.record(run, configs.load("c.json"))
    photograph, annotation = next(Path(root, "JPEGImages").iterdir()), next(Path(root, "Annotations").iterdir())
    for file in (photograph, annotation, Path(root, "ImageSets/Main/train.txt")):
        before = file.read_bytes()
        file.write_bytes(before + before[-1:] if file.suffix != ".txt" else before[: before.index(b"\n") + 1])
        assert changed() == [f"the data in {root}"], file
        file.write_bytes(before)
        assert changed() == []
    os.rename(root, "gone")
    assert changed() == []


def test_data_that_changed_between_two_runs_of_a_process_are_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, root = Path("run"), write_digits("data", train=3, val=2, test=2, image_size=64, crops_train=10, crops_val=10)
    run.mkdir()
    config = configs.from_dict(detofa_config(root), "c")
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    provenance.record(run, config)
    annotation = next(Path(root, "Annotations").iterdir())
    annotation.write_bytes(annotation.read_bytes() + b"\n")
    with ExitStack() as held, pytest.raises(UserError, match="run holds a run that began before the data in data changed"):
        start_up._lock(held, config, config.hparams.batch_size, 1, run, False)


def test_what_is_not_read_of_the_data_does_not_count(tmp_path):
    """A thumbnail's database beside the photographs, or another photograph that no list names."""
    root = write_digits(tmp_path / "data", train=3, val=2, test=2, image_size=64, crops_train=10, crops_val=10)
    Path(root, "labels.json").write_text("{}")
    split = configs.CocoSplit("labels.json", "JPEGImages")
    kinds = (
        configs.ImageFolderData(str(root / "classification")),
        configs.CocoData(root=str(root), holdout=1, train=split, test=split),
        configs.VocData(root=str(root), holdout=1, train=("train",), test=("test",)),
    )

    def digests() -> list[str | None]:
        content.forget_digests()
        return [content.content_digest(data) for data in kinds]

    before = digests()
    assert None not in before and len(set(before)) == 3
    one_class = next((root / "classification" / "train").iterdir())
    (one_class / "Thumbs.db").touch()
    (root / "JPEGImages" / "another.jpg").touch()
    assert digests() == before
    (one_class / "another.png").touch()
    Path(root, "labels.json").write_text("[]")
    assert [now == then for now, then in zip(digests(), before)] == [False, False, True]


def test_a_fine_tuning_has_its_weights_elsewhere(config):
    """It begins from a run's, whose digest is in its origin.json, and not from those of the config."""
    (Path("run") / "origin.json").touch()
    provenance.record(Path("run"), config)
    assert provenance.recorded(Path("run")) == {"code": ["commit a"], "weights": {}}


@pytest.mark.parametrize("content", ["{", "[]", '{"code": [1], "weights": {}}', '{"code": [], "weights": {"net.h5": 1}}'])
def test_a_damaged_file_is_named(config, content):
    (Path("run") / provenance.FILE).write_text(content)
    with pytest.raises(
        UserError, match="provenance.json is damaged or unreadable .*: restore it, or remove it to continue without this record"
    ):
        provenance.check_inputs_unchanged(Path("run"), config)


def test_changes_beside_the_code_are_told(tmp_path, monkeypatch):
    for file in ("nnabla_detofa/file", "configs/file"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    assert provenance.revision().startswith("commit ") and "changes" not in provenance.revision()
    (tmp_path / "configs" / "file").write_text("changed")
    assert provenance.revision().endswith(" with changes")


def test_another_projects_commit_is_not_ours(tmp_path, monkeypatch):
    """An environment may lie in the repository of whoever uses the package."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "nnabla_detofa").mkdir()
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    assert provenance.revision() == f"version {__version__}"
