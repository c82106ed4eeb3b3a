"""A full device is said in one sentence that names the entry to lower."""

import re

import pytest
import tiny

from nnabla_detofa.backend.device_memory import bounded_by
from nnabla_detofa.cli import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.training import loop as training

NNABLA = "memory error in alloc\n/builds/src/nbla/memory/memory.cpp:39\nFailed `this->alloc_impl()`: allocation failed."


@pytest.mark.parametrize(
    "message", [NNABLA, "CUDNN_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation", "(2) out of memory: cudaMalloc"]
)
def test_a_failed_allocation_names_the_entry_and_half_of_it(message):
    sentence = "the device has too little memory for 32 images at once: lower hparams.bn_batch, such as hparams.bn_batch=16"
    with pytest.raises(UserError, match=re.escape(sentence)), bounded_by("hparams.bn_batch", 32):
        raise RuntimeError(message)


@pytest.mark.parametrize(("images", "fewer"), [(2, 1), (7, 1), (12, 6), (15, 5)])
def test_the_suggested_mini_batch_divides_the_batch(images, fewer):
    with pytest.raises(UserError, match=f"such as hparams.mini_batch={fewer};"), bounded_by("hparams.mini_batch", images):
        raise RuntimeError(NNABLA)


def test_one_image_has_no_half_and_other_errors_stay():
    with pytest.raises(UserError, match="too little memory for one image: use a device"), bounded_by("hparams.mini_batch", 1):
        raise RuntimeError(NNABLA)
    with pytest.raises(RuntimeError, match="^value error$"), bounded_by("hparams.mini_batch", 8):
        raise RuntimeError("value error")


def test_a_run_that_does_not_fit_ends_with_status_2(tmp_path, monkeypatch, capsys):
    def full(graph):
        raise RuntimeError(NNABLA)

    monkeypatch.setattr(training, "step", full)
    assert main(["-f", str(tiny.config_file()), "-c", "cpu", "-o", str(tmp_path / "run")]) == 2
    assert "lower hparams.mini_batch, such as hparams.mini_batch=" in capsys.readouterr().err
