"""The curves of a run in TensorBoard: each has its own phase's steps and the values that were reported, also after a stop."""

import json
import os
import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small import pretrain_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.training import phase_training


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> its points (step, value), of all event files of a run in the order they were written."""
    found = defaultdict(list)
    for file in sorted((folder / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        events = EventAccumulator(str(file), {"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] += [(point.step, point.value) for point in events.Scalars(tag)]
    return found


@pytest.mark.thorough
def test_each_phase_has_its_own_points_and_the_rate_itself(tmp_path, monkeypatch):
    """40 crops in batches of 8, a point every 3 steps and at the end of a phase; the supernet's is stopped after 5 steps."""
    root = write_digits(tmp_path / "digits", train=1, val=1, test=1, image_size=64, crops_train=40, crops_val=20)
    content = pretrain_config(root / "classification")
    content["args"]["print_frequency"] = 3
    content["hparams"] |= {"fullnet_epochs": 1, "epochs": 2, "paths": 0}
    content["optimizer"] = {"train": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 4}}
    file, folder, losses = tmp_path / "tiny.json", tmp_path / "run", defaultdict(dict)
    file.write_text(json.dumps(content))
    report = phase_training.PhaseTraining._report

    def note(self, progress, bar):
        losses[self.phase.name][progress.step + 1] = progress.losses[0]
        report(self, progress, bar)
        if (self.phase.name, progress.step + 1) == ("supernet", 5) and len(os.listdir(folder / "tensorboard")) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(phase_training.PhaseTraining, "_report", note)
    assert main(["-f", str(file), "-o", str(folder)]) == 130
    assert main(["-f", str(file), "-o", str(folder)]) == 0
    found = curves(folder)
    assert [step for step, _ in found["share of paths rejected/supernet"]] == [3, 6, 9, 10]
    windows = {"fullnet": [(1, 3), (4, 5)], "supernet": [(1, 3), (6, 6), (7, 9), (10, 10)]}  # a stop ends one too
    for phase in training_phases(configs.load(file)):
        named, rate = losses[phase.name], phase.schedule(40).get_learning_rate
        ends = {end: range(first, end + 1) for first, end in windows[phase.name]}
        means = [(end, pytest.approx(np.mean([named[step] for step in steps]), rel=1e-5)) for end, steps in ends.items()]
        assert found[f"loss/{phase.name}"] == means
        assert found[f"learning_rate/{phase.name}"] == [(end, pytest.approx(rate(end - 1), rel=1e-5)) for end in ends]
