import hashlib
import itertools
import logging
import subprocess
import sys
import types

import nnabla as nn
import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig

from nnabla_detofa.backend import compat, cuda_libraries, launch
from nnabla_detofa.backend.compat import Device, Model, Optimizer, Runner, hydra_state
from nnabla_detofa.backend.ranks import Communicator
from nnabla_detofa.common.errors import UserError

EXTENSION = {
    "cuda": """
class StreamEventHandler:
    def __init__(self, device_id):
        self.device_id = device_id
def get_device_count():
    import os
    return len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
""",
    "cudnn": """
import nnabla
def context(device_id="0", type_config="float"):
    return nnabla.Context(["cpu:float"], "CpuCachedArray", device_id)
""",
}


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """No launcher, no GPU chosen, and nnabla's default context as it was."""
    for name in itertools.chain(*launch.LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(compat, "VISIBLE_GPUS", None)
    before = nn.get_current_context()
    yield
    nn.set_default_context(before)


@pytest.fixture
def cuda(tmp_path, monkeypatch):
    """Installs an extension for CUDA whose modules have the given source, and libraries for it."""
    monkeypatch.setattr(cuda_libraries, "load", lambda: None)
    for name in EXTENSION:
        monkeypatch.delitem(sys.modules, f"nnabla_ext.{name}", raising=False)

    def install(**sources):
        for name, source in (EXTENSION | sources).items():
            folder = tmp_path / "nnabla_ext" / name
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in EXTENSION:
        sys.modules.pop(f"nnabla_ext.{name}", None)


@pytest.mark.thorough
def test_importing_a_network_says_nothing_and_leaves_the_root_logger_alone():
    program = (
        "import logging, sys; import nnabla_detofa.backend.compat; assert not logging.getLogger().handlers; "
        "assert logging.getLogger().level == logging.WARNING; "
        "assert sys.modules['nnabla.nnabla.variable'] is sys.modules['nnabla.variable']; "
        "logging.getLogger('nnabla').warning('heard')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "heard" in done.stderr


def test_repair_twice_is_repair_once():
    before = {name: module for name, module in sys.modules.items() if name.startswith("nnabla")}
    compat.repair()
    assert {name: module for name, module in sys.modules.items() if name.startswith("nnabla")} == before


@pytest.mark.skipif(not compat.fix_order_of_sums(), reason="this build of NNabla hides the sizes of the cache")
def test_matrix_products_have_the_same_bits_on_every_processor():
    """Eigen adds up in an order that depends on the cache, unless its size is given; the hash is of an AMD EPYC."""
    rng = np.random.default_rng(0)
    x, w = (nn.Variable.from_numpy_array(rng.random(shape, np.float32)) for shape in ((16, 900), (900, 24)))

    def bits() -> str:
        y = compat.F.affine(x, w)
        y.forward()
        return hashlib.sha256(y.d.tobytes()).hexdigest()[:16]

    expected = bits()
    assert expected == "d25092059407e128"
    assert compat.fix_order_of_sums((32 << 10, 1 << 20, 32 << 20)) and bits() != expected  # that processor's own sizes
    compat.repair()
    assert bits() == expected
    assert compat.fix_order_of_sums((48 << 10, 1 << 20, 1 << 20)) and bits() == expected  # only the first level matters
    compat.repair()


@pytest.mark.parametrize("complete", [True, False])
def test_repair_leaves_a_complete_installation_alone(complete, tmp_path, monkeypatch):
    inner = tmp_path / "nnabla_nas" / "contrib" / "classification" / "ofa" / "networks"
    inner.mkdir(parents=True)
    (tmp_path / "nnabla_nas" / "__init__.py").touch()
    if complete:
        (inner / "ofa_resnet50.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "nnabla_nas"]:
        monkeypatch.delitem(sys.modules, name)
    compat.repair()
    added = {name for name in sys.modules if name.startswith(compat.NETWORKS)}
    for name in added:
        monkeypatch.delitem(sys.modules, name)
    assert bool(added) != complete


def test_the_cpu_is_one_process_without_events():
    device = Device.open("cpu")
    assert device.name == "cpu"
    assert nn.get_current_context().backend == ["cpu:float"]
    assert (device.comm.rank, device.comm.n_procs, device.comm.size, device.comm.ctx) == (0, 1, 1, device.ctx)
    device.event.default_stream_synchronize()
    device.event.add_default_stream_event()
    array = nn.NdArray.from_numpy_array(np.ones(3))
    device.comm.all_reduce([array], division=True, inplace=False)
    device.comm.barrier()
    assert array.data.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            'raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")',
            r"NVIDIA's driver \(libcuda.so.1\) is not found",
        ),
        (
            'raise ImportError("libcudnn.so.8: cannot open shared object file: No such file or directory")',
            r"the library libcudnn.so.8 is not found: make setup-cuda",
        ),
        ("def get_device_count():\n    return 0", "CUDA reports no device"),
    ],
)
def test_without_a_usable_gpu_cudnn_is_rejected_and_auto_is_the_cpu(source, reason, cuda, caplog):
    cuda(cuda=source)
    with pytest.raises(UserError, match=f"args.context is cudnn, but .*{reason}") as caught:
        Device.open("cudnn")
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.INFO):
        assert Device.open("auto").name == "cpu"
    assert "this runs on the CPU" in caplog.text


def test_without_the_extension_its_name_is_said(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "installed", lambda: False)
    with pytest.raises(UserError, match="but NNabla's CUDA extension is not installed: make setup-cuda"):
        Device.open("cudnn")
    assert Device.open("auto").name == "cpu"


def test_no_visible_gpu_is_no_gpu(cuda, monkeypatch):
    cuda()
    monkeypatch.setattr(compat, "VISIBLE_GPUS", "")
    assert Device.open("auto").name == "cpu"
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is empty"):
        Device.open("cudnn")


def test_a_gpu_is_taken_with_its_event_handler(cuda, monkeypatch):
    cuda()
    device = Device.open("auto", device_id="2")
    assert device.name == "cudnn"
    assert device.event.device_id == 0  # the only visible one
    assert compat.os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setattr(compat, "VISIBLE_GPUS", "4,7")
    Device.open("cudnn", device_id="1")
    assert compat.os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    Device.open("cudnn", device_id="-1")
    assert compat.os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": "gpu"}, "args.context must be cpu, cudnn or auto, got 'gpu'"),
        ({"device_id": "first"}, "args.device_id must be the number of a GPU"),
        ({"device_id": "1"}, r"args.device_id must be below 1 \(CUDA_VISIBLE_DEVICES=3\), got '1'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, cuda, monkeypatch):
    cuda()
    monkeypatch.setattr(compat, "VISIBLE_GPUS", "3")
    with pytest.raises(UserError, match=message):
        Device.open(**arguments)


class TwoGpus(Communicator):
    """Stands in for NNabla's communicator, which needs NCCL: rank 1 of two."""

    def __init__(self, ctx):
        super().__init__(ctx, 1, 1, 2)


def test_auto_takes_as_many_gpus_as_ranks(cuda, monkeypatch):
    cuda()
    monkeypatch.setattr(compat, "NnablaCommunicator", TwoGpus)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert Device.open("auto").name == "cudnn"
    assert compat.os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setattr(compat, "VISIBLE_GPUS", "5,3,4")
    Device.open("auto")
    assert compat.os.environ["CUDA_VISIBLE_DEVICES"] == "5,3"
    monkeypatch.setattr(compat, "VISIBLE_GPUS", "5")
    with pytest.raises(UserError, match="2 ranks need 2 GPUs on this machine, usable: 1; choose --processes 1"):
        Device.open("auto")


def test_fewer_gpus_than_ranks_says_what_to_write(cuda, monkeypatch):
    cuda(cuda="def get_device_count():\n    return 1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    for arguments in (("auto",), ("cudnn", "0,1")):
        with pytest.raises(UserError, match="2 ranks need 2 GPUs.*usable: 1.*--processes 1.*-c cpu"):
            Device.open(*arguments)


def test_each_rank_needs_a_gpu(cuda, monkeypatch):
    cuda()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    with pytest.raises(UserError, match="args.device_id must name a GPU for each of 2 ranks, like 0,1; got '0'"):
        Device.open("cudnn")


def test_ranks_on_a_machine_without_a_gpu_need_none(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", mpi(TwinWorld()))
    assert Device.open("auto").comm.n_procs == 2


def test_ranks_that_cannot_communicate_are_rejected(cuda, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match="several ranks were launched, but on the CPU they communicate through"):
        Device.open("cpu")
    cuda()
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    reason = (
        r"nnabla has no communicator here \(value error in query; Failed `.*`: Any of .* could not be found in .*\): it loads"
    )
    with pytest.raises(UserError, match=reason) as caught:
        Device.open("cudnn")
    assert "\n" not in str(caught.value) and "function_registry" not in str(caught.value)


class TwinWorld:
    """mpi4py's COMM_WORLD as rank 1 of two processes that hold the same numbers."""

    def __init__(self, size=2):
        self.size = size

    def Get_rank(self):
        return 1

    def Get_size(self):
        return self.size

    def Split_type(self, kind):
        return self

    def Ibarrier(self):
        return self

    def Test(self):
        return True

    def Alltoall(self, sent, received):
        self.values = sent.copy()
        received[:] = np.split(sent, self.size)[1]

    def Allgather(self, sent, received):
        received[:] = self.size * self.values


def mpi(world):
    return types.SimpleNamespace(MPI=types.SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=0))


@pytest.mark.parametrize("inplace", [True, False])
def test_ranks_on_cpus_add_up_or_average(inplace, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", mpi(TwinWorld()))
    comm = Device.open("cpu").comm
    assert (comm.rank, comm.local_rank, comm.n_procs) == (1, 1, 2)
    values = [np.arange(6.0).reshape(2, 3), np.array(5.0)]
    arrays = [nn.NdArray.from_numpy_array(value) for value in values]
    comm.all_reduce(arrays, inplace=inplace)
    for array, value in zip(arrays, values):
        assert np.array_equal(array.data, 2 * value)
    comm.all_reduce(arrays, division=True, inplace=inplace)
    for array, value in zip(arrays, values):
        assert np.array_equal(array.data, 2 * value)
    comm.all_reduce([], inplace=inplace)


def test_another_mpi_than_the_launchers_is_rejected(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", mpi(TwinWorld(size=1)))
    with pytest.raises(UserError, match="2 ranks were launched, but they find 1"):
        Device.open("cpu")


class Scale(Model):
    """y = w x, w = 1."""

    def __init__(self):
        self.w = nn.Variable.from_numpy_array(np.ones((1, 1)), need_grad=True)

    def call(self, x):
        return x * self.w

    def get_parameters(self, grad_only=False):
        return {"w": self.w}

    def save_parameters(self, path, **_):
        nn.save_parameters(path, self.get_parameters())


class Once(Runner):
    """A runner with nothing to do but what the base class does."""

    def run(self):
        self.monitor.info("running\n", view=False)
        self.model.w.g = 1
        self.optimizer["train"].update()
        self.save_checkpoint()
        self.monitor.close()

    train_on_batch = valid_on_batch = callback_on_epoch_end = callback_on_start = callback_on_finish = run


def test_runners_of_one_process_write_each_under_its_own_folder(tmp_path):
    before = HydraConfig.instance().cfg
    for name in ("first", "second", "first"):
        with hydra_state(tmp_path / name) as folder:
            device, model, optimizer = Device.open("cpu"), Scale(), Optimizer(name="Adam", alpha=0.1)
            optimizer.set_parameters(model.get_parameters())
            runner = Once(
                model,
                optimizer={"train": optimizer},
                regularizer={},
                dataloader={"train": range(8), "valid": range(4)},
                hparams={
                    "batch_size_train": 4,
                    "mini_batch_train": 4,
                    "batch_size_valid": 4,
                    "mini_batch_valid": 4,
                    "input_shapes": [[1]],
                    "target_shapes": [[1]],
                },
                args={"comm": device.comm, "event": device.event, "output_path": ""},
            )
            runner.run()
            assert (runner.one_epoch_train, runner.accum_train) == (2, 1)
        assert folder == (tmp_path / name).resolve()
        assert "running\n" in (folder / "log.txt").read_text()
        assert (folder / "checkpoint" / "optim_train.h5").is_file()
        assert (folder / "tensorboard").is_dir()
    assert HydraConfig.instance().cfg is before
    assert (tmp_path / "first" / "log.1.txt").is_file()


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder that can be created"), hydra_state(tmp_path / "file"):
        pass
