"""Malformed input of every kind is refused in one sentence, without a trace: the corpus, and some in a process of its own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from corpus import CASES
from corpus.case import answer, fault, inside
from corpus.results import finished
from corpus.template import make

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make(tmp_path_factory.mktemp("corpus") / "template")


def test_the_corpus_is_large_and_names_each_case_once():
    assert len(CASES) >= 200
    assert len({str(case) for case in CASES}) == len(CASES)
    assert all(case.words for case in CASES)


@pytest.mark.parametrize("kind", dict.fromkeys(case.kind for case in CASES))
def test_each_is_refused_in_one_sentence(kind, template, tmp_path):
    """One test for all cases of a kind, which spares pytest's cost of a thousand tests; it tells of all that fail."""
    faults = {}
    for number, case in enumerate(case for case in CASES if case.kind == kind):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        if found := fault(case, template, scratch):
            faults[str(case)] = found
    assert faults == {}


PROCESSES = ("config.yaml: a Python call", "VOC annotation: an entity of a file beside", "weights: an archive with a pickle")


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in PROCESSES], ids=str)
def test_a_process_answers_the_same(case, template, tmp_path):
    """What is said in this process is what a shell sees, and all that it sees."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert fault(case, template, scratch) == ""
    with inside(scratch / "case"):
        done = subprocess.run(
            [sys.executable, "-m", "nnabla_detofa", *case.command],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, answer(case, scratch / "case")[2].splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_a_good_input_is_not_refused(template, tmp_path):
    """What the cases break was whole: otherwise they would be refused for something else."""
    for case in ("voc", "coco", "yolo", "classes"):
        scratch = tmp_path / case
        scratch.mkdir()
        good = next(found for found in CASES if found.parts == (case, f"{case}.json"))
        command = ("run", "--dry-run", "-f", f"{case}.json")
        whole = type(good)("good input", case, command, (), parts=good.parts)
        assert "status 0" in fault(whole, template, scratch)
    (tmp_path / "run").mkdir()
    made = next(
        found for found in CASES if "reproduce" in found.command and "figure3" in found.command and "run" in found.parts
    )
    whole = replace(made, make=finished)
    assert "status 0" in fault(whole, template, tmp_path / "run")
