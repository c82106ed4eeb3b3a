"""Training phases and the number of training images: what means nothing together."""

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.runs.phases import check_phases, training_phases


def phases(*overrides):
    """Of a run with batches of 4, and 1, 1 and 2 epochs of the fullnet, the warm-up and the fine-tuning."""
    content = detofa_config("data")
    for override in overrides:
        content = configs.overridden(content, override)
    return training_phases(configs.from_dict(content, "c"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["optimizer.train.warmup_steps=5"], r"the 4 steps of the phase fullnet \(1 epoch of 4 steps\), got 5"),
        (["optimizer.train.warmup_steps=1000000000"], "the 4 steps of the phase fullnet .* got 1000000000"),
        (["optimizer.train.warmup_steps=3", "hparams.steps_per_epoch=2"], "the 2 steps of the phase fullnet .* got 3"),
        (
            ["optimizer.train.warmup_steps=13", "hparams.fullnet_epochs=0"],
            r"the 12 steps of the phase warm-up \(3 epochs of 4 steps\), got 13",
        ),
        (
            ["optimizer.train.warmup_steps=9", "hparams.fullnet_epochs=9", "hparams.epochs=1", "args.runner=ofa"],
            "the 8 steps of the phase warm-up .* got 9",
        ),
        (["hparams.batch_size=17"], "the phase fullnet must be at most the number of training images, 16, got 17"),
    ],
)
def test_a_phase_that_the_images_do_not_fill_is_rejected(overrides, message):
    with pytest.raises(UserError, match=message):
        check_phases(phases(*overrides), 16)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.train.warmup_steps=4"],
        ["optimizer.train.warmup_steps=9", "hparams.fullnet_epochs=0", "hparams.warmup_epochs=0", "hparams.epochs=3"],
        ["optimizer.train.warmup_steps=9", "hparams.fullnet_epochs=0", "hparams.warmup_epochs=0", "hparams.epochs=0"],
        ["hparams.batch_size=16"],
    ],
)
def test_a_phase_that_the_images_fill_is_accepted(overrides):
    check_phases(phases(*overrides), 16)
