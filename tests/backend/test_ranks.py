"""Several processes do what one does: here joined by pipes, and by MPI where there is one."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from joined_processes import together, values_of
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.backend import launch
from nnabla_detofa.backend.compat import Device, NoEvents, Optimizer
from nnabla_detofa.backend.ranks import Communicator
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.data.sets import DetectionSets
from nnabla_detofa.evaluation.detections import BoxDetector, detect_all
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evaluation.validation import PathEvaluator
from nnabla_detofa.methods import algorithm1
from nnabla_detofa.methods.algorithm1 import DetOFASearcher
from nnabla_detofa.networks import centernet
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.pruning import UniformPaths
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training import mini_batch
from nnabla_detofa.training.loop import NotFinite, train

ROOT = Path(__file__).parents[2]
SMALL = Geometry(width_scale=0.0625, strides=(1, 2, 2, 1))
SPACE = ofa_resnet50(SMALL)


# --- Ranks without MPI ------------------------------------------------------------------------------------------------


def test_all_ranks_get_what_each_has_however_long():
    long = np.random.default_rng(0).bytes(5000)
    found = values_of(together(lambda comm: (comm.gather(comm.rank), comm.gather(long[comm.rank :])), ranks=3))
    assert found == [([0, 1, 2], [long, long[1:], long[2:]])] * 3


def test_items_are_shared_out_and_come_back_in_order():
    def work(comm):
        return list(comm.map(lambda item: (item, comm.rank), range(5)))

    assert values_of(together(work)) == [[(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]] * 2
    assert work(Communicator()) == [(item, 0) for item in range(5)]


def test_ranks_exchange_quick_results_in_blocks_and_slow_ones_at_once(monkeypatch):
    monkeypatch.setattr("nnabla_detofa.backend.ranks.EXCHANGE", 0.05)

    def work(comm):
        exchanges, each = [], comm.each
        comm.each = lambda function: (exchanges.append(1), each(function))[1]
        slow = list(comm.map(lambda item: time.sleep(0.1 * (item < 4)) or item, range(100)))
        return slow, len(exchanges)

    for results, exchanges in values_of(together(work)):
        assert results == list(range(100)) and 3 <= exchanges <= 10, "two for the slow items, few for the others"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("no such file"), ["UserError: no such file"] * 2),
        (KeyboardInterrupt(), ["Stopped: "] * 2),
        (ZeroDivisionError("of 7"), [r"RuntimeError: rank 1 failed:(.|\n)*ZeroDivisionError: of 7", "ZeroDivisionError: of 7"]),
    ],
)
def test_what_goes_wrong_on_one_rank_goes_wrong_on_all(error, words):
    def work(comm):
        def fail():
            if comm.rank == 1:
                raise error

        comm.each(fail)

    for pattern, (_, found) in zip(words, together(work)):
        assert re.fullmatch(pattern, found.strip() if pattern.endswith("7") else found)


def test_only_the_first_rank_does_what_is_done_once(tmp_path):
    def work(comm):
        return comm.once(lambda: os.open(tmp_path / "once", os.O_CREAT | os.O_EXCL) and "made")

    assert values_of(together(work)) == ["made", "made"]


# --- Training ---------------------------------------------------------------------------------------------------------


def item(dataset, index, rng):
    return rng.normal(size=(3, 32, 32)).astype(np.float32), np.array([index % 3])


def trained(comm, steps, accumulate=1, paths_per_step=1, transform=item, objective=None):
    """Weights and reported losses after some steps of batches of 8 images."""
    net = Classifier(3, SMALL, rng=np.random.default_rng(0))
    optimizer = Optimizer(name="Adam", alpha=1e-3, lr_scheduler=Schedule(1e-3, "cosine", 20))
    optimizer.set_parameters(net.get_parameters(grad_only=True))
    loader = Loader(range(12), transform, 8, seed=0, workers=0, rank=comm.rank, size=comm.n_procs)
    size, losses = 8 // comm.n_procs // accumulate, []
    # what another rank draws must not matter
    paths = UniformPaths(SPACE, np.random.default_rng(comm.rank))
    train(
        net,
        optimizer,
        paths,
        loader,
        [nn.Variable((size, 3, 32, 32)), nn.Variable((size, 1))],
        range(steps),
        accumulate=accumulate,
        paths_per_step=paths_per_step,
        objective=objective,
        comm=comm,
        on_step=lambda progress: losses.append(progress.losses),
    )
    return {name: parameter.d.copy() for name, parameter in net.get_parameters().items()}, losses


@pytest.mark.thorough
@pytest.mark.parametrize(("ranks", "steps", "paths"), [(2, 20, 1), (2, 2, 2), (4, 2, 1)])
def test_ranks_train_as_one_process_that_adds_up_their_mini_batches(ranks, steps, paths):
    """Not only nearly: the same bits, whatever Adam makes of small differences."""
    alone, losses = trained(Communicator(), steps, accumulate=ranks, paths_per_step=paths)
    for weights, seen in values_of(together(lambda comm: trained(comm, steps, paths_per_step=paths), ranks)):
        assert seen == losses
        for name, value in alone.items():
            np.testing.assert_array_equal(weights[name], value)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all():
    bad = Loader(range(12), item, 8, seed=0, rank=1, size=2).indices(1)[0]  # rank 1 alone sees it in step 1

    def transform(dataset, index, rng):
        image, label = item(dataset, index, rng)
        return (image * np.nan if index == bad else image), label

    def objective(outputs, images, targets):
        return (F.mean(outputs) + F.mean(images),)

    (_, first), (_, second) = together(lambda comm: trained(comm, 3, transform=transform, objective=objective))
    assert first == second and re.match(f"{NotFinite.__name__}: the loss became nan at step [01], learning rate", first)


# --- Evaluation -------------------------------------------------------------------------------------------------------


class Images:
    """Seven random photographs with one object each."""

    def __len__(self):
        return 7

    def load(self, index):
        image = np.random.default_rng(index).integers(0, 256, (50, 64, 3), np.uint8)
        return types.SimpleNamespace(image=image, boxes=np.array([[1.0, 2, 30, index + 9]]), labels=[1], difficult=[False])


def test_paths_and_test_images_are_shared_out_with_the_same_results():
    net = centernet.Detector(HeadGeometry(3, (8, 8), 8), SMALL, heatmap_std=0.1, rng=np.random.default_rng(0))
    paths = list(SPACE.sample_many(np.random.default_rng(3), 3))
    rng = np.random.default_rng(1)
    images = [rng.normal(size=(2, 3, 64, 64)).astype(np.float32) for _ in range(2)]
    targets = [np.zeros((2, 3, 16, 16)), np.ones((2, 2, 2)), np.full((2, 2, 2), 0.5), np.zeros((2, 2)), np.ones((2, 2))]
    sets = DetectionSets(tuple("abc"), None, None, Images(), (64, 64), 4, 8)

    def work(comm):
        evaluator = PathEvaluator(net, images, [[images[0], *targets]], comm=comm)
        detector, done = BoxDetector(net, paths[0], reestimate(net, paths[0], images), top=5), []
        detections, truth = detect_all(detector, sets, 2, done.append, comm=comm)
        return evaluator.losses(paths).tolist(), detections, [boxes.tolist() for boxes, _, _ in truth], done

    losses, detections, truth, done = work(Communicator())
    assert len(set(losses)) == 3 and len(detections) == 7 and done == [2, 2, 2, 1] and truth[6] == [[1, 2, 30, 15]]
    for found in values_of(together(work)):
        assert (found[0], found[2], found[3]) == (losses, truth, done)
        for one, other in zip(found[1], detections):
            for left, right in zip(one, other):
                np.testing.assert_array_equal(left, right)


# --- A whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A config file whose whole run takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    root = write_digits(folder / "digits", train=12, val=4, test=5, image_size=64, crops_train=40, crops_val=20)
    content = detofa_config(root)
    content["args"]["evaluation_processes"] = 1
    content["hparams"] |= {"buckets": 2, "epochs": 1, "heldout_paths_per_bucket": 2, "bn_images": 4, "bn_batch": 2}
    content["hparams"]["filter"] |= {"ensemble": 3, "linear_skip": True}
    content["hparams"]["search"]["generations"] = 2
    (folder / "tiny.json").write_text(json.dumps(content))
    return folder / "tiny.json"


def device(comm):
    return dataclasses.replace(Device.open("cpu"), comm=comm, event=NoEvents())


class StoppedOnRank1(DetOFASearcher):
    """The second rank is told to stop just before fine-tuning."""

    def train_phase(self, phase, *args, **options):
        if phase.name == "fine-tuning" and self.comm.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_phase(phase, *args, **options)


def results(folder):
    """Everything that a run found, without times."""
    names = ("paths.jsonl", "held_out_paths.jsonl", "operations.json", "scores.json", "search.json", "winners.jsonl")
    found = {name: (folder / name).read_text() for name in names}
    found |= {file.name: file.read_text() for file in folder.glob("*_detections.json")}
    return found | {"summary": {**json.loads((folder / "summary.json").read_text()), "seconds": None}}


@pytest.mark.thorough
def test_a_run_of_two_ranks_is_that_of_one_process_with_their_mini_batches(config_file, tmp_path, capfd):
    """Half of it by two ranks, the second of which is told to stop, and half by one process that goes on."""
    folder, config = tmp_path / "two", configs.load(config_file)
    stopped = together(lambda comm: algorithm1.run(config, device(comm), folder, searcher=StoppedOnRank1))
    assert [error for _, error in stopped] == ["Stopped: checkpoint saved"] * 2
    assert json.loads((folder / "mini_batch.json").read_text()) == {"mini_batch": 2, "processes": 2}
    assert json.loads((folder / "checkpoint" / "fine_tuning" / "state.json").read_text())["step"] == 2 * 3 - 2
    assert len(list(folder.glob("log*.txt"))) == 1 and len(list((folder / "tensorboard").iterdir())) == 1
    out = capfd.readouterr().out
    assert out.count("[1/12] fullnet\n") == 1 and "(2 processes at once)" in out

    with pytest.raises(UserError, match="was started with mini-batches of 2, which 4 processes cannot make of 4 images: use"):
        mini_batch.mini_batch(config, 4, folder)
    algorithm1.run(config, device(Communicator(nn.get_current_context())), folder)
    assert main(["-f", str(config_file), "-o", str(tmp_path / "one"), "hparams.mini_batch=2"]) == 0
    assert results(folder) == results(tmp_path / "one")
    assert not (tmp_path / "one" / "mini_batch.json").exists()
    # what is finished is not done again, by any number
    before = results(folder)
    values_of(together(lambda comm: bool(algorithm1.run(config, device(comm), folder)), ranks=4))
    assert results(folder) == before and json.loads((folder / "mini_batch.json").read_text())["mini_batch"] == 2


def test_what_goes_wrong_before_the_start_is_the_same_on_all_ranks(config_file, tmp_path):
    config = configs.load(config_file, ["hparams.search.budgets=[1000]"])
    for _, error in together(lambda comm: algorithm1.run(config, device(comm), tmp_path / "run")):
        assert "below the smallest path" in error
    assert not (tmp_path / "run").exists()


needs_mpi = pytest.mark.skipif(not launch.can_launch(), reason="needs mpirun and mpi4py: make setup")


def by_mpi(*arguments):
    command = [sys.executable, "-m", "nnabla_detofa", "run", *map(str, arguments), "--processes", "2"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.thorough
@needs_mpi
def test_a_run_through_mpirun(config_file, tmp_path):
    """The fullnet alone; its stop and its end are those of one process."""
    few = ("-f", config_file, "args.runner=fullnet", "hparams.fullnet_epochs=2")
    done = by_mpi(*few, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[1/2] fullnet\n") == 1
    assert main([*map(str, few), "-o", str(tmp_path / "one"), "hparams.mini_batch=2"]) == 0
    weights = "fullnet/weights.h5"
    assert (tmp_path / "two" / weights).read_bytes() == (tmp_path / "one" / weights).read_bytes()
    one, two = (json.loads((tmp_path / name / "fullnet.json").read_text()) for name in ("one", "two"))
    assert one == two


@pytest.mark.thorough
@needs_mpi
def test_mistakes_through_mpirun_are_reported_once(config_file, tmp_path):
    for wrong, message in (("hparams.epoch=3", "hparams.epoch is not a key"), ("dataloader.voc.root=nowhere", "nowhere")):
        done = by_mpi("-f", config_file, "-o", tmp_path / "run", wrong)
        assert done.returncode == 2 and done.stderr.count("error: ") == 1 and message in done.stderr
