"""Results are written whole or not at all, by one function."""

import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from faulty import the_error

import nnabla_detofa
from nnabla_detofa.cli import main
from nnabla_detofa.cli.shared import check_output_file
from nnabla_detofa.common import files
from nnabla_detofa.common.errors import UserError

WRITERS = {"files.py", "digits.py", "coco.py", "evaluated_paths.py"}
"""The one that writes; those whose files lie in a new folder that is renamed when it is whole; one that appends."""


def direct_writes(tree):
    """Calls that write a file in its place."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if (
            name == "open"
            and any(isinstance(mode, str) and set(mode.partition(":")[0]) & set("wx") for mode in modes)  # "r:xz" reads
            or name in ("write_text", "write_bytes", "savefig")
            and isinstance(node.func, ast.Attribute)
            and owner != "files"
        ):
            yield node.lineno


def test_no_module_writes_a_result_in_its_place():
    found = {}
    for file in Path(nnabla_detofa.__file__).parent.rglob("*.py"):
        if file.name not in WRITERS:
            found |= {f"{file.name}:{line}": None for line in direct_writes(ast.parse(file.read_text()))}
    assert [place for place in found if not place.startswith("figures.py")] == []
    assert list(direct_writes(ast.parse("open(x, 'w'); p.write_text(y); figure.savefig(z); open(x)"))) == [1, 1, 1]
    assert list(direct_writes(ast.parse("tarfile.open(x, 'w:xz'); tarfile.open(x, 'r:xz')"))) == [1]


def test_what_was_there_survives_a_full_disk(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    file = tmp_path / "result.json"
    file.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: files.write_json(file, {}),
        lambda: files.write_text(file, "x"),
        lambda: files.write_bytes(file, b"x"),
    ):
        with pytest.raises(OSError, match="No space left on device.*result.json"):
            write()
    with pytest.raises(OSError, match="No space left"), files.whole_text(file) as opened:
        opened.write("x")
    with pytest.raises(ZeroDivisionError), files.whole_text(file) as opened:
        raise ZeroDivisionError
    assert file.read_text() == "before" and os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    "failing", ["the block", "a write", "the first move", "the second move", "no hard links", "an interruption"]
)
def test_files_of_one_result_are_all_new_or_all_old(failing, tmp_path, monkeypatch):
    before = {"a": "old a", "b": "old b", "other": "stays"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    number, replace = iter(range(9)), os.replace
    at = {"the first move": 0, "the second move": 1, "no hard links": 1, "an interruption": 1}.get(failing)

    def moving(source, target):
        if os.path.basename(os.path.dirname(source)) == "fresh" and next(number) == at:
            raise KeyboardInterrupt if failing == "an interruption" else OSError(5, "Input/output error", os.fspath(source))
        replace(source, target)

    def no_links(*paths):
        raise OSError(1, "Operation not permitted")

    with pytest.raises((OSError, KeyboardInterrupt, ZeroDivisionError)) as caught, files.written_together(tmp_path) as fresh:
        (fresh / "a").write_text("new a")
        (fresh / "b").write_text("new b")
        (fresh / "c").write_text("new c")
        monkeypatch.setattr(os, "replace", moving)
        if failing == "no hard links":
            monkeypatch.setattr(os, "link", no_links)
        if failing == "a write":
            raise OSError(28, "No space left on device", os.fspath(fresh / "c"))
        if failing == "the block":
            raise ZeroDivisionError
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
    if isinstance(caught.value, OSError):  # the error names the file that the user knows
        assert caught.value.filename == str(tmp_path / {"a write": "c", "the first move": "a"}.get(failing, "b"))


def test_files_of_one_result_replace_the_old_ones(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    with files.written_together(tmp_path) as fresh:
        (fresh / "a").write_text("new a")
        (fresh / "b").write_text("new b")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "new a", "b": "new b"}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    with pytest.raises(OSError) as caught, files.written_together(tmp_path / "missing"):
        pass
    assert caught.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize("length", [251, 252, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, length):
    files.write_text(tmp_path / ("n" * length), "text")
    assert [file.name for file in tmp_path.iterdir()] == ["n" * length]


@pytest.mark.parametrize(
    "command",
    [["init", "--voc", "loop"], ["init", "--coco", "loop"], ["data", "to-coco", "--voc", "loop", "--root", "loop"],
     ["detect", "configs/weights/digits_detector.nnp", "a.png", "-o", "loop"], ["train", "digits_detofa", "-o", "loop"]],
)  # fmt: skip
def test_links_that_form_a_loop_are_one_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    assert main(command) == 2
    the_error(capsys.readouterr().err)


def test_devices_and_pipes_are_written_and_stay_what_they_are(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", pipe], stdout=subprocess.PIPE
    )
    files.write_text(pipe, "through")
    assert reader.communicate()[0] == b"through\n" and stat.S_ISFIFO(pipe.stat().st_mode)
    files.check_writable(pipe)
    files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_keeps_its_permissions(tmp_path):
    file = tmp_path / "private"
    file.touch()
    file.chmod(0o600)
    files.write_text(file, "x")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN", "-o"],
        ["search", "RUN", "--by-score", "-o"],
        ["measure-latency", "-f", "CONFIG", "-o"],
        ["detect", "RUN", "IMAGE", "-o"],
        ["report", "RUN", "-o"],
        ["table1", "-o"],
    ],
)
def test_a_target_that_cannot_be_written_is_rejected_before_the_work(command, tmp_path, monkeypatch, capsys):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    image = next((tiny.digits() / "JPEGImages").iterdir())
    words = {"RUN": tiny.detofa_run(), "CONFIG": tiny.config_file(), "IMAGE": image}
    line = [str(words.get(word, word)) for word in command]
    capsys.readouterr()
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)  # root may write everywhere
    assert main([*line, str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert f"--output must be writable, got {tmp_path / 'out'}: Permission denied" in output.err and not output.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["evaluate", "RUN", "-o"], "fullnet.json"),
        (["evaluate", "RUN", "-o"], "subnet_1.json"),
        (["search", "RUN", "--by-score", "-o"], "search.json"),
        (["evaluate-paths", "RUN", "--per-bucket", "1", "-o"], "paths.jsonl"),
        (["image-count-study", "RUN", "--per-bucket", "1", "-o"], "log.txt"),
        (["measure-latency", "-f", "CONFIG", "-o"], "config.json"),
        (["import-ofa", "FILE", "-o"], "supernet.h5"),
    ],
)
def test_a_result_of_a_run_is_not_replaced_by_another_command(command, name, tmp_path, capsys):
    for file in ("config.json", "seconds.json", name):
        (tmp_path / file).write_text("{}")
    words = {"RUN": tmp_path, "CONFIG": tiny.config_file(), "FILE": __file__}
    assert main([*(str(words.get(word, word)) for word in command), str(tmp_path / name)]) == 2
    assert f"--output must not replace a result of the run in {tmp_path}, got" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "{}"
    check_output_file(tmp_path / f"my_{name}")


@pytest.mark.parametrize("name", ["weights.h5", "state.json"])
def test_neither_is_one_of_a_phase(tmp_path, name):
    (tmp_path / "fullnet").mkdir()
    (tmp_path / "fullnet" / name).write_text("{}")
    check_output_file(tmp_path / "fullnet" / name)  # of no run
    (tmp_path / "config.json").write_text("{}")
    check_output_file(tmp_path / "weights.h5")  # beside a config of the user's own
    (tmp_path / "seconds.json").write_text("{}")
    (tmp_path / "checkpoint/fullnet").mkdir(parents=True)
    (tmp_path / "link").symlink_to("fullnet")
    (tmp_path / "fullnet/search.json").write_text("{}")
    check_output_file(tmp_path / "fullnet/search.json")  # such a name is a run's own only in its folder
    for folder in ("fullnet", "checkpoint/fullnet", "link"):
        (tmp_path / folder / name).write_text("{}")
        with pytest.raises(UserError, match=f"must not replace a result of the run in {tmp_path}, got"):
            check_output_file(tmp_path / folder / name)


def test_a_file_of_the_user_s_own_is_no_temporary_file(tmp_path):
    (tmp_path / "a.json.new").write_text("mine")
    files.write_json(tmp_path / "a.json", {})
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", "a.json.new"}
