"""What calls and imports leave in the user's process: nothing."""

import gc
import json
import logging
import os
import pkgutil
import re
import signal
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import forking
import nnabla as nn
import numpy as np
import pytest
import tiny
from nnabla.ext_utils import get_extension_context

import nnabla_detofa
from nnabla_detofa import load_detector, load_supernet
from nnabla_detofa.cli import main
from nnabla_detofa.evaluation import forked
from nnabla_detofa.networks import supernet
from nnabla_detofa.path_filter import model as path_filter
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.tools import static_network
from nnabla_detofa.tools.evaluate import open_detector
from nnabla_detofa.tools.export import export

IMPORTS = """
import importlib, json, os, sys
import cv2  # which itself changes LD_LIBRARY_PATH
import process_state

def changes(names):
    before, changed = process_state.state(), []
    for name in names:
        importlib.import_module(name)
        changed += [f"{name}: {change}" for change in process_state.changes(before, process_state.state())]
    if "nnabla" in sys.modules:
        import nnabla
        changed += ["context"] * (nnabla.get_current_context().backend != nnabla.Context().backend)
        changed += list(nnabla.get_parameters(grad_only=False))
    return changed + [name for name in ("matplotlib", "matplotlib.pyplot") if name in sys.modules]

libraries, *groups = map(str.split, sys.argv[1:])
shared = changes(libraries)
assert not any(name.split(".")[0] in ("nnabla", "nnabla_nas", "nnabla_detofa") for name in sys.modules)
for names in groups:
    child = os.fork()
    if not child:
        print(json.dumps(shared + changes(names)), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("null", flush=True)
"""
LIBRARIES = ("boto3", "hydra.utils", "networkx", "scipy.stats", "sklearn.neural_network", "tensorboard.summary")
"""What NNabla and NNablaNAS import and takes long: imported once, before the processes are forked."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(nnabla_detofa.__path__, "nnabla_detofa.")
    if not module.name.endswith("__main__")
)
FIRST = ("weights", "supernet", "centernet", "ranking", "validation", "loop", "export", "reproduce")
"""Modules that are imported first, each in a process of its own; after the first of them come all others."""


@pytest.fixture(scope="module")
def changes():
    """Name of `FIRST` -> what its import changed, or None if it failed; and stderr."""
    first = [[name for name in MODULES if name.rpartition(".")[2] == last] for last in FIRST]
    assert all(len(names) == 1 for names in first)
    first[0] += MODULES
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", IMPORTS, *map(" ".join, (LIBRARIES, *first))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return dict(zip(FIRST, map(json.loads, done.stdout.splitlines()), strict=True)), done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("first", FIRST)
def test_importing_any_module_first_changes_nothing(first, changes):
    found, errors = changes
    assert found[first] == [] and errors == ""


@pytest.mark.thorough
def test_nnabla_keeps_the_level_that_the_user_gave_it():
    program = (
        "import logging, nnabla; logging.getLogger('nnabla').setLevel(logging.DEBUG); before = list(logging.root.handlers); "
        "import nnabla_detofa.networks.supernet; assert logging.getLogger('nnabla').level == logging.DEBUG; "
        "assert logging.root.handlers == before"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


# --- NNabla's parameter scope and memory ------------------------------------------------------------------------------


def scope():
    return nn.get_parameters(grad_only=False)


@pytest.mark.thorough
def test_networks_and_filters_stay_out_of_the_parameter_scope():
    with nn.parameter_scope("", {}), nn.parameter_scope("mine"):
        supernet.SearchNet(3, 0.0625)
        path_filter.PathFilter(dim=16, heads=2, layers=1, feed_forward=16, rng=np.random.default_rng(0))
        opened = open_detector(tiny.detofa_run(), "subnet_1")
        static_network.StaticGraph(opened.net, opened.path, (1, 3, 64, 64), True, None)
        assert scope() == {}
    assert nn.parameter.current_scope is nn.parameter.root_scope


@pytest.mark.thorough
def test_a_detector_opened_twenty_times_leaves_memory_and_scope_as_they_were():
    program = f"""
import gc, nnabla as nn, resource
from nnabla_detofa import load_supernet, load_detector
gc.disable()
def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for number in range(20):
    load_detector({str(tiny.detofa_run())!r})
    net = load_supernet({str(tiny.detofa_run() / "fine_tuning" / "weights.h5")!r}, "detection", width_scale=0.0625)
    if number == 4:
        before = used()
assert not nn.get_parameters(grad_only=False)
print((used() - before) / sum(p.d.nbytes for p in net.get_parameters().values()))
"""
    done = forking.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 15, "30 networks would have been kept"


@pytest.mark.thorough
def test_networks_are_freed_with_their_last_reference(tmp_path):
    """No reference cycle keeps their weights, hundreds of MB at full size, until Python's garbage collector runs."""
    run, exported = tiny.detofa_run(), tmp_path / "subnet.nnp"
    export(open_detector(run, "subnet_1"), run, "subnet_1", exported)
    image = np.zeros((64, 64, 3), np.uint8)

    def detector():
        found = load_detector(run)
        found(image)
        return found, found.opened.net

    def nnp():
        found = load_detector(exported)
        found(image)
        return found, found.network

    def supernet_of_file():
        found = load_supernet(run / "fine_tuning" / "weights.h5", "detection", width_scale=0.0625)
        return found, found.backbone

    def ranking():
        found = path_filter.PathFilter(dim=16, heads=2, layers=1, feed_forward=16, rng=np.random.default_rng(0))
        found.score(ofa_resnet50().sample_many(np.random.default_rng(0), 3), np.zeros(3, int))
        return found, found.members[0]

    for make in (detector, nnp, supernet_of_file, ranking):
        gc.collect()
        gc.disable()
        try:
            found, network = make()
            kept = weakref.ref(found), weakref.ref(network)
            del found, network
            assert [reference() for reference in kept] == [None, None], make.__name__
        finally:
            gc.enable()


# --- What a call changes and gives back -------------------------------------------------------------------------------


CALLS = """
import json, logging, os, random, signal, sys
import cv2, matplotlib, matplotlib.figure, nnabla as nn, numpy as np
from nnabla.ext_utils import get_extension_context
import nnabla_detofa
from process_state import changes, state

run, other, config, weights, image, output = sys.argv[1:]
calls = {
    "train": lambda config: nnabla_detofa.train(config, output, ["args.runner=fullnet", "args.evaluation_processes=2"]),
    "describe_run": nnabla_detofa.describe_run,
    "load_detector": lambda run: nnabla_detofa.load_detector(run)(cv2.imread(image)),
    "evaluate_detector": nnabla_detofa.evaluate_detector,
    "search": lambda run: nnabla_detofa.search(run, flops="5M"),
    "compare_runs": lambda run: nnabla_detofa.compare_runs(run, other),
    "check_data": lambda config: nnabla_detofa.check_data(config, whole=True),
    "load_supernet": lambda weights: nnabla_detofa.load_supernet(weights, "detection", width_scale=0.0625),
}
assert set(calls) == set(nnabla_detofa.__all__)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
np.seterr(all="raise")
np.random.seed(3)
random.seed(3)
os.umask(0o27)
matplotlib.rcParams["font.size"] = 3
logging.getLogger("nnabla").setLevel(logging.ERROR)
logging.getLogger("nnabla_detofa").setLevel(logging.ERROR)
cv2.setNumThreads(1)


def changed_by(name):
    with nn.parameter_scope("mine"), nn.context_scope(get_extension_context("cpu", device_id="7")), nn.auto_forward(True):
        nn.parameter.get_parameter_or_create("theirs", (1,))
        before, changed = state(), []
        argument = {"train": config, "check_data": config, "load_supernet": weights}.get(name, run)
        for given in (argument, os.path.dirname(argument) + "/missing.json"):
            try:
                calls[name](given)
            except nnabla_detofa.common.errors.UserError as error:
                assert given != argument, error
            changed += changes(before, state())
        return changed


for name in calls:
    child = os.fork()
    if not child:
        print("changed by", name, json.dumps(changed_by(name)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """Name of a function -> what its calls changed, where they ended; and stderr."""
    image, run = next((tiny.digits() / "JPEGImages").iterdir()), tiny.detofa_run()
    weights, output = run / "fine_tuning" / "weights.h5", tmp_path_factory.mktemp("called") / "run"
    words = map(str, (run, tiny.fullnet_run(), tiny.config_file(), weights, image, output))
    # An interpreter of its own, since OpenCV waits forever in a fork of a process whose threads it has started.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", CALLS, *words], capture_output=True, text=True, env=environment)
    found = re.findall(r"^changed by (\w+) (.*)$", done.stdout, re.MULTILINE)
    return {name: json.loads(changed) for name, changed in found}, done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("name", nnabla_detofa.__all__)
def test_a_function_changes_nothing(name, called):
    """Neither a call that succeeds nor one that fails, in a process of its own with settings of its own."""
    found, errors = called
    assert found.get(name) == [], errors


def test_forked_processes_leave_the_signal_mask_as_it_was():
    for blocked in ([], [signal.SIGUSR1], [signal.SIGTERM, signal.SIGUSR2]):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            results = forked.map_forked(lambda number: number, range(3), 2)
            assert next(results) == 0
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(blocked)
            assert list(results) == [1, 2]
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def same(context, other):
    return (context.backend, context.array_class, context.device_id) == (other.backend, other.array_class, other.device_id)


@pytest.mark.thorough
def test_training_works_in_any_mode_of_the_caller_and_gives_it_back(tmp_path):
    context = get_extension_context("cpu", type_config="float", device_id="7")
    before, mask, filters = nn.get_current_context(), signal.pthread_sigmask(signal.SIG_BLOCK, []), list(warnings.filters)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    root = logging.getLogger()
    logs = list(root.handlers), root.level, logging.getLogger("nnabla_detofa").level
    arguments = ["args.runner=fullnet", "args.evaluation_processes=2"]
    with nn.context_scope(context), nn.parameter_scope("mine", {}), nn.no_grad(), nn.auto_forward(), np.errstate(all="raise"):
        errors = np.geterr()
        summary = nnabla_detofa.train(tiny.config_file(), tmp_path / "run", arguments)
        assert same(nn.get_current_context(), context) and np.geterr() == errors and scope() == {}
    assert same(nn.get_current_context(), before)
    alone = json.loads((tiny.fullnet_run() / "summary.json").read_text())
    assert summary["fullnet"]["loss"] == alone["fullnet"]["loss"]
    assert main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *arguments]) == 0
    assert same(nn.get_current_context(), before)
    assert (list(root.handlers), root.level, logging.getLogger("nnabla_detofa").level) == logs
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask and warnings.filters == filters
