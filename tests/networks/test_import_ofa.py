"""Checkpoints of OFA's ResNet50: every tensor in its place, the same logits, and first weights that suit our images."""

import sys
from functools import partial
from types import SimpleNamespace

import nnabla as nn
import numpy as np
import pytest
from parity import OFA, reference_net, reference_tensors

from nnabla_detofa import load_supernet
from nnabla_detofa.cli import program as cli
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.networks import import_ofa, weights
from nnabla_detofa.networks.import_ofa import convert, read_checkpoint
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.networks.weights import fill
from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.paths import Path

FIRST = "input_stem.0.conv.conv.weight"
LINEAR = "classifier.linear.linear.weight"


@pytest.fixture(scope="module")
def reference():
    """Load the reference before the first test that needs it, whose memory it would count as."""
    reference_net()
    reference_tensors()


@pytest.fixture
def no_new_networks(reference, monkeypatch):
    """Conversions take the names and shapes from the reference's network, instead of making such a network each."""
    monkeypatch.setattr(import_ofa, "Classifier", {10: reference_net()}.get)


@pytest.mark.thorough
def test_a_checkpoint_of_many_gpus_becomes_a_network_with_the_references_logits(reference, tmp_path, monkeypatch, capsys):
    state = {f"module.{name}": array for name, array in reference_tensors().items()}
    state["module.input_stem.0.bn.bn.num_batches_tracked"] = np.array(7)
    monkeypatch.setattr(import_ofa, "read_checkpoint", lambda file: state)
    file = tmp_path / "ofa.h5"
    assert cli.main(["import-ofa", "ofa.pth", "-o", str(file), "--keep-channels"]) == 0
    report = capsys.readouterr().out
    assert "308 tensors read, 307 placed, 1 dropped" in report and "10 classes" in report and str(file) in report
    net, expected = load_supernet(file), OFA["outputs"][1]
    x = nn.Variable.from_numpy_array(np.random.RandomState(1234).normal(0, 1, (2, 3, 96, 96)).astype(np.float32))
    logits = net(x, Path.from_ofa(expected["arch"]))
    logits.forward()
    np.testing.assert_allclose(logits.d, expected["logits"], atol=1e-4 * np.abs(expected["logits"]).max())


@pytest.mark.thorough
def test_the_plain_names_of_the_largest_network_are_known(no_new_networks):
    plain = {}
    for name, array in reference_tensors().items():
        for kind in ("conv", "bn", "linear"):
            name = name.replace(f"{kind}.{kind}.weight", f"{kind}.weight").replace(f"bn.{kind}.", f"{kind}.")
        plain[name.replace("linear.linear", "linear")] = array
    assert "input_stem.1.conv.conv.weight" in plain and "blocks.0.conv1.bn.running_mean" in plain
    found, expected = convert(plain).arrays, convert(reference_tensors()).arrays
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.thorough
def test_our_images_give_what_theirs_gave(no_new_networks):
    """The same logits for blue, green, red images with ImageNet's normalization as for OFA's red, green, blue ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.float32) / 255  # blue, green, red
    ours = np.stack([IMAGENET(image) for image in pixels])
    theirs = ((pixels[..., ::-1] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    original, adapted = reference_net(), Classifier(10)
    fill(adapted.get_parameters(), convert(reference_tensors()).arrays, "the reference")
    path = Path.from_ofa(OFA["outputs"][1]["arch"])
    expected, found = (
        net(nn.Variable.from_numpy_array(images.astype(np.float32)), path)
        for net, images in ((original, theirs), (adapted, ours))
    )
    nn.forward_all([expected, found])
    np.testing.assert_allclose(found.d, expected.d, atol=1e-4 * np.abs(expected.d).max())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LINEAR: None}, "lacks classifier.linear.linear.weight"),
        ({FIRST: None}, r"no tensor for 1 of 307 parameters, such as input_stem/0/conv/conv/_W"),
        (
            {"blocks.18.conv1.conv.conv.weight": np.zeros((1, 1, 1, 1))},
            r"blocks.18.conv1.conv.conv.weight .* matches no parameter",
        ),
        ({FIRST: np.zeros((3, 32, 3, 3))}, r"input_stem.0.conv.conv.weight has the shape \(3, 32, 3, 3\); .* \(32, 3, 3, 3\)"),
        (
            {"classifier.linear.linear.bias": np.full(10, np.nan)},
            "classifier.linear.linear.bias must contain only finite numbers",
        ),
        ({"input_stem.0.conv.weight": np.zeros((32, 3, 3, 3))}, "input_stem/0/conv/conv/_W twice"),
    ],
)
def test_what_does_not_fit_is_named(change, message, no_new_networks):
    tensors = {name: array for name, array in {**reference_tensors(), **change}.items() if array is not None}
    with pytest.raises(UserError, match=message):
        convert(tensors)


def test_without_pytorch_or_with_an_old_one_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ofa.pth").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["import-ofa", "ofa.pth", "-o", "w.h5"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'torch>=2.6'" in error and error.count("\n") == 1
    for version in ("1.10.2+cpu", "2.5.1"):
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version, load=lambda file, weights_only: None))
        with pytest.raises(UserError, match=f"PyTorch 2.6 or later.* got {version[:4]}"):
            read_checkpoint("ofa.pth")
    assert cli.main(["import-ofa", "ofa.pth", "-o", "w.npz"]) == 2
    assert "must end in .h5, got w.npz" in capsys.readouterr().err


class Code:
    """Unpickling it would run something."""

    def __reduce__(self):
        return print, ("this must not be printed",)


def test_reading_a_checkpoint(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    file, state = tmp_path / "ofa.pth", {"a.weight": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.tensor(1).bfloat16()}
    for saved in (state, {"state_dict": state, "epoch": 3}):
        for zipped in (True, False):  # PyTorch has two kinds of file
            torch.save(saved, file, _use_new_zipfile_serialization=zipped)
            found = read_checkpoint(file)
            assert list(found) == ["a.weight", "b"]
            np.testing.assert_array_equal(found["a.weight"], np.ones((2, 3), np.float32))
    for bad in ({"state_dict": {**state, "c": Code()}}, Code()):
        torch.save(bad, file)
        with pytest.raises(UserError, match=r"ofa\.pth must contain only tensors"):
            read_checkpoint(file)
    for bad in ({"epoch": 3}, [torch.ones(1)], {}):
        torch.save(bad, file)
        with pytest.raises(UserError, match=r"ofa\.pth must be a state dict"):
            read_checkpoint(file)
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"ofa\.pth cannot be read"):
        read_checkpoint(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"ofa\.pth must contain only tensors"):
        read_checkpoint(file)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    assert "must not be printed" not in capsys.readouterr().out


def test_the_weights_of_nnablanas_see_our_images_too(tmp_path, monkeypatch):
    """They were trained on red, green, blue, as OFA's: the file's first convolution is reversed, and it says what it takes."""
    small = partial(Classifier, geometry=Geometry(width_scale=0.125))
    monkeypatch.setattr(import_ofa, "Classifier", small)
    first, net = "input_stem/0/conv/conv/_W", small(4, rng=np.random.default_rng(0))
    weights.write(tmp_path / "theirs.h5", net.get_parameters())
    assert cli.main(["import-ofa", str(tmp_path / "theirs.h5"), "-o", str(tmp_path / "ours.h5")]) == 0
    assert cli.main(["import-ofa", str(tmp_path / "theirs.h5"), "-o", str(tmp_path / "kept.h5"), "--keep-channels"]) == 0
    before, ours, kept = (weights.read(tmp_path / f"{name}.h5") for name in ("theirs", "ours", "kept"))
    assert {name for name in before if not np.array_equal(before[name], ours[name])} == {first}
    np.testing.assert_array_equal(ours[first], before[first][:, ::-1])
    assert all(np.array_equal(before[name], kept[name]) for name in before)
    assert load_supernet(tmp_path / "ours.h5").normalization == IMAGENET
    reverse = weights.normalization_of(tmp_path / "kept.h5")  # of the channels as that file has them: red, green, blue
    assert (reverse.mean, reverse.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cli.main(["import-ofa", str(tmp_path / "nothing.h5"), "-o", str(tmp_path / "x.h5")]) == 2


@pytest.mark.thorough
def test_a_negative_variance_is_refused(no_new_networks):
    tensors = dict(reference_tensors())
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name] = tensors[name] - 10
    with pytest.raises(UserError, match="is a variance and must not be negative, got -"):
        convert(tensors)
