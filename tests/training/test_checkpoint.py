"""Checkpoints that are damaged, and the format of the moments."""

import re

import h5py
import numpy as np
import pytest
from tiny_training import Uniform, inputs, parts, values

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.training.checkpoint import Checkpoint, write_moments
from nnabla_detofa.training.loop import train

pytestmark = pytest.mark.thorough


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(tmp_path):
    net, optimizer, loader = parts()
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "c", said.append)
    kept = {}
    for number in range(3):
        train(net, optimizer, Uniform(), loader, inputs(), range(number, number + 1))
        checkpoint.save(net, optimizer, {"step": number + 1})
        kept[number + 1] = values(net)
    assert {place.name for place in tmp_path.iterdir()} == {"c", "c.old"}  # the last two
    other, fresh, _ = parts(seed=9)
    assert checkpoint.load(other, fresh) == {"step": 3} and not said
    for name in ("weights.h5", "optim_train.h5", "state.json"):
        file, content = tmp_path / "c" / name, (tmp_path / "c" / name).read_bytes()
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damage in (content[: len(content) // 3], changed, b""):
            file.write_bytes(damage)
            assert checkpoint.load(other, fresh) == {"step": 2}
            assert re.search("the checkpoint .*c cannot be read .*: resuming from the previous one", said.pop())
            for key, value in values(other).items():
                np.testing.assert_array_equal(value, kept[2][key])
        file.write_bytes(content)
    for damage in (
        "null",
        "3",
        '"x"',
        "[]",
        "[" * 50_000,
        '{"optimizer": {"current_iter": 1}}',
        '{"optimizer": [], "step": 3}',
    ):
        (tmp_path / "c" / "state.json").write_text(damage)
        assert checkpoint.load(other, fresh, lambda state: state["step"] + 1) == {"step": 2}
        assert re.search("the checkpoint .*c cannot be read .*: resuming from the previous one", said.pop())
    (tmp_path / "c" / "state.json").unlink()
    assert checkpoint.load(other, fresh) == {"step": 2}
    checkpoint.save(net, optimizer, {"step": 3})  # the whole one before it stays
    (tmp_path / "c" / "weights.h5").write_bytes(b"")
    assert checkpoint.load(other, fresh) == {"step": 2}
    (tmp_path / "c.old" / "optim_train.h5").write_bytes(b"")
    with pytest.raises(UserError, match="c cannot be read .*c.old cannot be read .*; remove .*c and .*c.old to start this"):
        checkpoint.load(other, fresh)


def test_the_moments_are_written_as_nnabla_does(tmp_path):
    net, optimizer, loader = parts()
    train(net, optimizer, Uniform(), loader, inputs(), range(2))
    write_moments(tmp_path / "ours.h5", optimizer)
    optimizer.save_checkpoint(str(tmp_path), "theirs")
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "optim_theirs.h5") as theirs:
        names: list[str] = []
        theirs.visit(names.append)
        for name in names:
            assert dict(ours[name].attrs) == dict(theirs[name].attrs)
            if isinstance(theirs[name], h5py.Dataset):
                assert ours[name].dtype == theirs[name].dtype
                np.testing.assert_array_equal(ours[name][...], theirs[name][...])
