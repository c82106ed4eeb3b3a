"""The training loop, its schedule and its checkpoints."""

import json

import h5py
import numpy as np
import pytest
from tiny_training import SMALL, SPACE, Uniform, inputs, parts, values

from nnabla_detofa.backend import kernels
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import Solver
from nnabla_detofa.networks import weights
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.geometry import HeadGeometry
from nnabla_detofa.training import loop
from nnabla_detofa.training.checkpoint import Checkpoint
from nnabla_detofa.training.loop import NotFinite, OnePath, new_optimizer, train


def test_the_step_schedule_by_hand():
    schedule = Schedule(1.0, "step", 70, milestones=(45, 60), gamma=0.1)
    rates = [schedule.get_learning_rate(step) for step in (0, 44, 45, 59, 60, 69)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_schedule_with_warm_up_by_hand():
    schedule = Schedule(2.0, "cosine", 100, warmup_steps=10)
    assert schedule.get_learning_rate(0) == pytest.approx(0.2)
    assert schedule.get_learning_rate(50) == pytest.approx(1.0)
    assert schedule.get_learning_rate(100) == pytest.approx(0.0)


def test_layers_that_a_path_skips_stay_still():
    net, optimizer, loader = parts()
    before = values(net)
    smallest = SPACE.sample_many(np.random.default_rng(0), 2000)
    path = min(smallest, key=lambda p: (sum(p.stage_depths), p.stem_depth))
    train(net, optimizer, OnePath(path), loader, inputs(), range(2))
    after = values(net)
    skipped = "blocks/3/conv1/conv/conv/_W"
    assert path.stage_depths[0] == 0
    np.testing.assert_array_equal(after[skipped], before[skipped])
    assert not np.array_equal(after["classifier/0/linear/linear/_b"], before["classifier/0/linear/linear/_b"])


def test_mini_batches_add_up_to_the_batch_without_batch_normalization_between_them():
    """The loss of a batch is the mean over its mini-batches, so is its gradient: here the last bias's."""
    found = []
    for accumulate in (1, 2):
        net, optimizer, loader = parts()
        train(net, optimizer, OnePath(SPACE.largest), loader, inputs(4 // accumulate), range(1), accumulate=accumulate)
        found.append(net.get_parameters()["classifier/0/linear/linear/_b"].g.copy())
    np.testing.assert_allclose(found[0], found[1], atol=0.05)
    assert abs(found[0].sum()) < 1e-5 > abs(found[1].sum())


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole, optimizer, loader = parts()
    train(whole, optimizer, Uniform(), loader, inputs(), range(6))

    first, optimizer, loader = parts()
    paths = Uniform()
    train(first, optimizer, paths, loader, inputs(), range(3))
    Checkpoint(tmp_path / "c").save(first, optimizer, {"step": 3, "paths": paths.state()})

    second, optimizer, loader = parts(seed=9)
    state = Checkpoint(tmp_path / "c").load(second, optimizer)
    paths = Uniform(seed=5)
    paths.restore(state["paths"])
    train(second, optimizer, paths, loader, inputs(), range(state["step"], 6))
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, second.get_parameters()[name].d)


def test_a_run_that_ends_between_two_steps_goes_on_with_the_next_path():
    """The sampler is a step ahead; `Progress.paths` is its state before that."""
    whole, optimizer, loader = parts()
    states, chosen = [], []
    train(
        whole,
        optimizer,
        Uniform(),
        loader,
        inputs(),
        range(6),
        on_step=lambda p: (states.append(p.paths), chosen.append(p.path)),
    )
    for number, state in enumerate(states[:-1]):
        paths = Uniform(seed=5)
        paths.restore(state)
        assert paths.next() == chosen[number + 1]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"paths_per_step": 2}])
def test_a_step_is_that_of_a_plain_loop_to_the_last_bit(options):
    parts_of_batch, several = options.get("accumulate", 1), options.get("paths_per_step", 1)
    fast, optimizer, loader = parts()
    losses = []
    given = inputs(4 // parts_of_batch)
    train(fast, optimizer, Uniform(), loader, given, range(4), on_step=lambda p: losses.append(p.losses), **options)

    plain, optimizer, loader = parts()
    paths, given, size = Uniform(), inputs(4 // parts_of_batch), 4 // parts_of_batch
    for number in range(4):
        optimizer.zero_grad()
        batch, chosen, seen = loader.batch(number), [paths.next() for _ in range(several)], []
        gradients = loop.GradientSum(optimizer.get_parameters())
        for start in range(0, 4, size):
            for path in chosen:
                graph = loop.build(plain, path, given, parts_of_batch)
                loop.load(graph, [array[start : start + size] for array in batch])
                loop.step(graph)
                seen.append(float(graph.losses[1].d))
            if parts_of_batch > 1:
                gradients.take()
        if parts_of_batch > 1:
            gradients.give()
        optimizer.update()
        assert losses[number] == (np.mean(seen),)
    for name, value in values(plain).items():
        np.testing.assert_array_equal(value, fast.get_parameters()[name].d, err_msg=name)


def test_the_next_step_is_prepared_before_the_losses_are_read_and_the_weights_are_updated(monkeypatch):
    net, optimizer, loader = parts()
    events, read = [], kernels.ScalarLog.read

    def recorded(name, function):
        return lambda *args, **options: events.append(name) or function(*args, **options)

    for name in ("build", "step"):
        monkeypatch.setattr(loop, name, recorded(name, getattr(loop, name)))
    monkeypatch.setattr(kernels.ScalarLog, "read", recorded("read", read))
    optimizer.update = recorded("update", optimizer.update)
    train(net, optimizer, OnePath(SPACE.largest), loader, inputs(2), range(3), accumulate=2)
    step = ["step", "step"]
    following = ["build", "read", "update"]
    assert events == ["build", *step, *following, *step, *following, *step, "read", "update"]


def test_a_checkpoint_survives_being_replaced_halfway(tmp_path):
    net, optimizer, _ = parts()
    train(net, optimizer, Uniform(), parts()[2], inputs(), range(1))
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.save(net, optimizer, {"step": 1})
    (tmp_path / "c").rename(tmp_path / "c.old")  # a stop between the two renames of the next save
    assert checkpoint.load(net, optimizer) == {"step": 1}
    checkpoint.remove()
    assert checkpoint.load(net, optimizer) is None


def test_a_damaged_checkpoint_is_named(tmp_path):
    net, optimizer, loader = parts()
    train(net, optimizer, Uniform(), loader, inputs(), range(1))
    Checkpoint(tmp_path / "c").save(net, optimizer, {"step": 1})
    (tmp_path / "c" / "weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="checkpoint .*c cannot be read"):
        Checkpoint(tmp_path / "c").load(net, optimizer)


def test_a_checkpoint_with_the_older_names_of_the_heatmap_head_is_loaded(tmp_path):
    def detector(seed):
        net = Detector(HeadGeometry(3, (8, 8), 8), SMALL, rng=np.random.default_rng(seed))
        return net, new_optimizer(net, Solver(), Schedule(1e-3, "constant", 9))

    net, optimizer = detector(0)
    for name, state in (states := optimizer._solver.get_states()).items():
        state.t = len(name)
        for moments in state.pstate.values():
            moments.d = np.random.default_rng(len(name)).random(moments.shape)
    optimizer._solver.set_states(states)
    Checkpoint(tmp_path / "c").save(net, optimizer, {"step": 4})
    for file in (tmp_path / "c").glob("*.h5"):
        with h5py.File(file, "r+") as opened:
            opened.move("heatmap", "heat_map")
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    (tmp_path / "c" / "state.json").write_text(json.dumps({"step": 4, "optimizer": state["optimizer"]}))
    other, fresh = detector(1)
    assert Checkpoint(tmp_path / "c").load(other, fresh) == {"step": 4}
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, other.get_parameters()[name].d)
    for name, state in fresh._solver.get_states().items():
        assert state.t == len(name)
        for key, moments in state.pstate.items():
            np.testing.assert_array_equal(moments.d, states[name].pstate[key].d)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    ("name", "number"), [("classifier/0/linear/linear/_b", np.inf), ("blocks/0/conv1/conv/conv/_W", np.nan)]
)
def test_a_loss_that_is_not_finite_stops_before_the_update(name, number, on_cpu, monkeypatch):
    """Also with the functions of a GPU, wherever in the network the number is."""
    monkeypatch.setattr(kernels, "on_cpu", lambda: on_cpu)
    net, optimizer, loader = parts()
    net.get_parameters()[name].d = number
    before = values(net)
    with pytest.raises(NotFinite, match="at step 0, learning rate 0.001, on the path"):
        train(net, optimizer, OnePath(SPACE.largest), loader, inputs(), range(1))
    np.testing.assert_array_equal(before["input_stem/0/conv/conv/_W"], values(net)["input_stem/0/conv/conv/_W"])


def test_weights_are_strict(tmp_path):
    net, *_ = parts()
    weights.save(net, tmp_path / "w.h5")
    other = Classifier(4, SMALL)
    with pytest.raises(UserError, match="classifier.* has the shape"):
        weights.load(other, tmp_path / "w.h5")
    (tmp_path / "bad.h5").write_text("no")
    with pytest.raises(UserError, match=r"bad\.h5 cannot be read as HDF5"):
        weights.load(net, tmp_path / "bad.h5")
    with pytest.raises(UserError, match=r"none\.h5 does not exist"):
        weights.load(net, tmp_path / "none.h5")
    few = dict(list(net.get_parameters().items())[:5])
    weights.write(tmp_path / "few.h5", few, normalization=net.normalization)
    with pytest.raises(UserError, match=r"lacks the parameter .* \(302 of 307 are missing\)"):
        weights.load(net, tmp_path / "few.h5")
