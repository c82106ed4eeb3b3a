"""The estimate of the time until a run is finished."""

import pytest
import tiny

from nnabla_detofa import config as configs
from nnabla_detofa.runs.phases import FINE_TUNED, phase_names, training_phases, tuning_phase
from nnabla_detofa.runs.time_left import EVALUATION_COST, Work, in_words, seconds_left, work
from nnabla_detofa.space.search_space import ofa_resnet50

PLAN = {"fullnet": Work(100), "paths": Work(evaluated=300), "fine-tuning": Work(50)}


def test_nothing_is_estimated_before_any_work():
    assert seconds_left(PLAN, {}, "fullnet", 0.0) is None
    assert seconds_left(PLAN, {"fullnet": 3.0}, "fullnet", 0.0) is None


def test_each_kind_of_work_has_its_own_rate():
    # 2 seconds for each trained image; evaluation is guessed from it, and then measured.
    assert seconds_left(PLAN, {"fullnet": 100.0}, "fullnet", 0.5) == pytest.approx(100 + 300 * 2 * EVALUATION_COST + 100)
    spent = {"fullnet": 200.0, "paths": 30.0}
    assert seconds_left(PLAN, spent, "paths", 0.2) == pytest.approx(240 * 0.5 + 100)
    assert seconds_left(PLAN, {**spent, "path filter": 9.0}, "path filter", 0.5) is not None


def test_a_finished_run_has_nothing_left():
    assert seconds_left(PLAN, {"fullnet": 200.0, "paths": 30.0, "fine-tuning": 100.0}, "fine-tuning", 1.0) == 0


@pytest.mark.parametrize("runner", ["detofa", "ofa", "ofa_ps", "fullnet"])
def test_the_work_is_that_of_phases_of_the_run(runner):
    config = configs.load(tiny.config_file(), [f"args.runner={runner}"])
    training = training_phases(config)
    planned = work(config, training, {"train": 24, "val": 8, "test": 8})
    assert set(planned) <= set(phase_names(config, training)) and planned["fullnet"].trained > 0
    assert all(sum(item) > 0 for item in planned.values())


def test_a_fine_tuning_trains_its_own_phase_alone():
    config = configs.load(tiny.config_file())
    phase = tuning_phase(config, ofa_resnet50(config.network.geometry))
    planned = work(config, [phase], {"train": 24, "val": 8, "test": 8})
    assert planned[FINE_TUNED].trained == len(phase.epochs) * 24 and "fullnet" not in planned


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "10 s"), (64, "60 s"), (100, "2 min"), (3300, "55 min"), (3720, "1 h"), (12000, "3 h 20 min"), (190000, "2 d 4 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
