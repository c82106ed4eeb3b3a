"""The functions of the package: their examples hold, and importing it stays quick."""

import doctest
import inspect
import shutil
import subprocess
import sys

import cv2
import nnabla
import pytest
import tiny

import nnabla_detofa
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.networks import centernet, supernet, weights
from nnabla_detofa.tools.detect import check_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the examples can be run."""
    root = tmp_path_factory.mktemp("examples")
    for name, run in (("demo", tiny.detofa_run()), ("fullnet", tiny.fullnet_run())):
        shutil.copytree(run, root / "runs" / name)
    (root / "configs").mkdir()
    shutil.copy(tiny.config_file(), root / "configs/demo.json")
    shutil.copy(tiny.digits() / "JPEGImages/test_00000.jpg", root / "image.jpg")
    weights.save(supernet.SearchNet(10, 0.0625), root / "supernet.h5")
    return root


class LogAside(doctest.OutputChecker):
    """What a run says meanwhile is no part of an example."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.thorough
@pytest.mark.parametrize("name", nnabla_detofa.__all__)
def test_the_example_of_a_function_holds(name, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    if name == "train":
        shutil.move("runs/fullnet", tmp_path)  # or there is nothing to train
    names = {key: getattr(nnabla_detofa, key) for key in nnabla_detofa.__all__}
    (example,) = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names | {"cv2": cv2, "nnabla": nnabla})
    assert example.examples, f"{name} has no example"
    result = doctest.DocTestRunner(LogAside()).run(example)
    assert result.failed == 0 and result.attempted == len(example.examples)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (["digits_detofa", "hparams.epochs=3"], {}, "output must be a folder, got hparams.epochs=3: pass key=value strings as"),
        (["digits_detofa", ["hparams.epochs=3"]], {}, "output must be a folder"),
        (["digits_detofa"], {"overrides": "hparams.epochs=3"}, "overrides must be a list, such as .*, got 'hparams.epochs=3'"),
    ],
)
def test_overrides_in_the_wrong_place_are_an_error(arguments, options, message):
    with pytest.raises(UserError, match=message):
        nnabla_detofa.train(*arguments, **options)


def test_a_file_that_opencv_could_not_read_is_named_as_the_cause():
    with pytest.raises(UserError, match="got NoneType, which cv2.imread returns for a file that it cannot read"):
        check_image(None)


def test_no_function_is_named_like_a_module():
    """Python would put the module in its place as soon as it is imported."""
    modules = {name for name, value in vars(nnabla_detofa).items() if inspect.ismodule(value)}
    assert centernet.__name__.split(".")[1] in modules
    assert not modules & set(nnabla_detofa.__all__)


def test_importing_the_package_is_quick():
    program = "import sys, nnabla_detofa; assert not {'nnabla', 'numpy', 'cv2', 'yaml'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
