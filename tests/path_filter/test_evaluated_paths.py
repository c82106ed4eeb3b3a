"""Evaluated paths on disk: they come back, continue after a kill, and are rejected where they do not belong."""

import dataclasses
import json
import math

import numpy as np
import pytest
from small import GEOMETRY, SPACE

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.space.geometry import OFA_RESNET50

PATHS = list(dict.fromkeys(SPACE.sample_many(np.random.default_rng(0), 20)))


def evaluated(number: int, **changed) -> EvaluatedPath:
    return dataclasses.replace(EvaluatedPath(PATHS[number], number % 5, 1000 + number, 10, 0.5 * number), **changed)


def opened(file, weights="hash", **settings) -> EvaluatedPaths:
    return EvaluatedPaths.open(file, weights, settings, GEOMETRY)


def test_they_come_back_from_disk(tmp_path):
    file = tmp_path / "new" / "paths.jsonl"
    paths = opened(file, bn_images=8)
    items = [evaluated(0), evaluated(1, ap=0.25), evaluated(2)]
    for item in items:
        paths.append(item)
    again = opened(file, bn_images=8)
    assert again.items == items == EvaluatedPaths.read(file, GEOMETRY).items
    assert PATHS[1] in again and PATHS[7] not in again
    assert again.losses.tolist() == [0, 0.5, 1] and list(again.batch) == PATHS[:3]
    assert again.flops.tolist() == [1000, 1001, 1002] and again.buckets.tolist() == [0, 1, 2]
    assert math.isnan(again.aps[0]) and again.aps[1] == 0.25
    assert again.settings == {"bn_images": 8} and again.geometry == GEOMETRY
    with pytest.raises(ValueError, match="already"):
        again.append(evaluated(0))


def test_a_torn_last_line_is_dropped_and_the_file_continues(tmp_path):
    file = tmp_path / "paths.jsonl"
    opened(file).append(evaluated(0))
    with open(file, "a") as torn:
        torn.write('{"path": {"d"')
    assert len(EvaluatedPaths.read(file)) == 1
    opened(file).append(evaluated(1))
    assert len(opened(file)) == 2
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_last_line_that_wants_only_its_end_is_not_torn(tmp_path):
    file = tmp_path / "paths.jsonl"
    for number in (0, 1):
        opened(file).append(evaluated(number))
        file.write_bytes(file.read_bytes()[:-1])
    assert len(EvaluatedPaths.read(file)) == 2
    opened(file).append(evaluated(2))
    assert opened(file).items == [evaluated(0), evaluated(1), evaluated(2)]
    file.write_bytes(file.read_bytes().splitlines()[0])
    opened(file).append(evaluated(0))
    assert opened(file).items == [evaluated(0)]


@pytest.mark.parametrize("end", ["", '\n{"path": {"d"', "\n{}\n"])
def test_a_file_that_is_rejected_is_left_as_it_was(end, tmp_path):
    file = tmp_path / "paths.jsonl"
    opened(file).append(evaluated(0))
    before = file.read_text().rstrip() + end
    file.write_text(before)
    with pytest.raises(UserError):
        opened(file, "other")
    assert file.read_text() == before


def test_a_torn_first_line_restarts_the_file(tmp_path):
    file = tmp_path / "paths.jsonl"
    file.write_text('{"format": "eval')
    assert len(opened(file)) == 0


def test_a_file_of_something_else_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("one line without an end")
    with pytest.raises(UserError, match="is not a file of evaluated paths"):
        opened(file)
    assert file.read_text() == "one line without an end"


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "paths.jsonl"
    opened(file).append(evaluated(0))
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"line 3 of .*paths.jsonl is not an evaluated path"):
        EvaluatedPaths.read(file)


def test_other_weights_settings_and_supernets_are_rejected(tmp_path):
    file = tmp_path / "paths.jsonl"
    opened(file, bn_images=8, images={"validation": "a"})
    for settings, message in (
        ({"bn_images": 16, "images": {"validation": "a"}}, r"settings.bn_images 8, this run has 16"),
        ({"bn_images": 8, "images": {"validation": "b"}}, r"settings.images.validation 'a', this run has 'b'"),
    ):
        with pytest.raises(UserError, match=message):
            opened(file, **settings)
    with pytest.raises(UserError, match="weights 'hash', this run has 'other'"):
        opened(file, "other", bn_images=8, images={"validation": "a"})
    with pytest.raises(UserError, match="holds paths of Geometry"):
        EvaluatedPaths.read(file, OFA_RESNET50)


def test_a_file_of_another_format_is_rejected(tmp_path):
    file = tmp_path / "paths.jsonl"
    file.write_text('{"format": "evaluated paths, version 1"}\n')
    with pytest.raises(UserError, match="its format is 'evaluated paths, version 1'"):
        opened(file)


def test_a_loss_that_is_not_finite_is_rejected(tmp_path):
    paths = opened(tmp_path / "paths.jsonl")
    with pytest.raises(UserError, match="is nan, from which no ranking can be learned"):
        paths.append(evaluated(0, loss=math.nan))
    assert len(opened(tmp_path / "paths.jsonl")) == 0


def test_two_who_append_do_not_go_unnoticed(tmp_path):
    first, second = (opened(tmp_path / "paths.jsonl") for _ in range(2))
    first.append(evaluated(0))
    with pytest.raises(UserError, match="changed by another process"):
        second.append(evaluated(0))
    first.append(evaluated(1))
    assert EvaluatedPaths.read(tmp_path / "paths.jsonl").items == [evaluated(0), evaluated(1)]
