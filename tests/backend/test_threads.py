"""Calls from threads other than the main one: no signal handlers there, and cached graphs that several threads share."""

import asyncio
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny

import nnabla_detofa
from nnabla_detofa.backend import launch
from nnabla_detofa.backend.graphs import CachedGraphs
from nnabla_detofa.cli import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evaluation import forked
from nnabla_detofa.methods import detectors
from nnabla_detofa.networks.supernet import SearchNet
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training import loop as training
from nnabla_detofa.training import phase_training

FULLNET = ("args.runner=fullnet", "args.evaluation_processes=2")


def in_thread(call):
    """What a call returns or raises in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# --- Calls that Python leaves to the main thread ----------------------------------------------------------------------


def test_handlers_are_left_alone_outside_the_main_thread():
    def handled():
        with launch.handling(lambda number, frame: None):
            return "done"

    assert in_thread(handled) == "done"


def test_paths_are_evaluated_by_forked_processes_from_a_thread():
    assert in_thread(lambda: list(forked.map_forked(lambda n: (n, os.getpid()), range(3), 2)))[1][1] != os.getpid()


@pytest.mark.thorough
def test_training_works_in_a_thread_and_by_the_command_line_there(tmp_path):
    summary = asyncio.run(asyncio.to_thread(nnabla_detofa.train, tiny.config_file(), tmp_path / "run", FULLNET))
    assert 0 <= summary["fullnet"]["ap50"] <= 1
    kept = files(tmp_path / "run")
    assert in_thread(lambda: main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *FULLNET])) == 0
    assert files(tmp_path / "run")["fullnet.json"] == kept["fullnet.json"]


@pytest.mark.thorough
@pytest.mark.parametrize("owner, name", [(training, "step"), (phase_training, "train"), (detectors, "average_precision")])
def test_a_restart_that_fails_before_its_first_step_brings_the_old_run_back(owner, name, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny.fullnet_run(), tmp_path / "run")
    kept = files(folder)

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(owner, name, fail)
    arguments = [*FULLNET, *(["hparams.fullnet_epochs=0"] if name == "average_precision" else [])]
    with pytest.raises(MemoryError):
        nnabla_detofa.train(tiny.config_file(), folder, arguments, restart=True)
    assert files(folder) == kept and (folder / "fullnet" / "weights.h5").exists()
    assert not (folder / ".before").exists()


@pytest.mark.thorough
def test_a_second_run_in_another_thread_is_rejected_and_changes_nothing(tmp_path, monkeypatch):
    step, second = training.step, []

    def step_beside_another_run(graph):
        if not second:
            second.append(None)
            with pytest.raises(UserError, match="another run is being trained in this process: wait for its end"):
                in_thread(lambda: nnabla_detofa.train(tiny.config_file(), tmp_path / "second", FULLNET))
        step(graph)

    monkeypatch.setattr(training, "step", step_beside_another_run)
    nnabla_detofa.train(tiny.config_file(), tmp_path / "first", FULLNET)
    assert second and not (tmp_path / "second").exists()


# --- Graphs that threads share ----------------------------------------------------------------------------------------


def together(call, threads=4):
    """Call it with the numbers of several threads at the same time; what they return."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, range(threads)))


@pytest.mark.thorough
def test_one_detector_called_by_several_threads_finds_what_it_finds_alone():
    detector = nnabla_detofa.load_detector(tiny.detofa_run())
    images = [np.random.default_rng(seed).integers(0, 256, (80 + seed, 100, 3), np.uint8) for seed in range(4)]
    alone = [detector(image, 0.0) for image in images]
    found = together(lambda thread: [detector(images[(thread + turn) % 4], 0.0) for turn in range(40)])
    for thread, results in enumerate(found):
        assert results == [alone[(thread + turn) % 4] for turn in range(40)]


def test_one_path_filter_called_by_several_threads_scores_as_alone():
    path_filter = PathFilter(dim=16, heads=2, layers=1, feed_forward=16, rng=np.random.default_rng(0))
    batches = [ofa_resnet50().sample_many(np.random.default_rng(seed), 70 + seed) for seed in range(4)]
    alone = [path_filter.score(batch, np.zeros(len(batch))) for batch in batches]
    found = together(lambda thread: [path_filter.score(batches[thread], np.zeros(70 + thread)) for _ in range(40)])
    for thread, results in enumerate(found):
        assert all(np.array_equal(scores, alone[thread]) for scores in results)


def test_networks_are_built_by_several_threads_and_share_nothing():
    built = together(lambda seed: SearchNet(3, 0.0625, rng=np.random.default_rng(seed)).get_parameters())
    for seed, parameters in enumerate(built):
        alone = SearchNet(3, 0.0625, rng=np.random.default_rng(seed)).get_parameters()
        assert list(parameters) == list(alone)
        assert all(np.array_equal(parameters[name].d, alone[name].d) for name in alone)


def test_a_cached_graph_is_built_once_and_held_by_one_thread():
    built, inside = [], []

    def use(thread):
        with graphs.held("key", build) as graph:
            inside.append(thread)
            assert len(inside) == 1 and graph == "graph of key"
            threading.Event().wait(0.01)
            inside.remove(thread)

    def build(key):
        built.append(key)
        return f"graph of {key}"

    graphs = CachedGraphs()
    together(use)
    with pytest.raises(ZeroDivisionError), graphs.held("key", build):
        raise ZeroDivisionError
    use(0)
    assert built == ["key"]
