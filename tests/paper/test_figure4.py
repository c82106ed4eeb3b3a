"""Figure 4's table, by hand."""

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest
from small import GEOMETRY, SPACE

from nnabla_detofa.paper.figure4 import FilteredPaths, comparison, draw, table, write_csv
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths


@pytest.fixture
def found(tmp_path) -> FilteredPaths:
    """Five paths in two of three buckets; the second bucket has no threshold, the third no path."""
    distinct = list(dict.fromkeys(SPACE.sample_many(np.random.default_rng(0), 50)))
    paths = EvaluatedPaths.open(tmp_path / "paths.jsonl", "weights", {}, GEOMETRY)
    for path, bucket, ap in zip(distinct, (0, 0, 0, 1, 1), (0.5, 0.6, 0.3, 0.7, 0.9)):
        paths.append(EvaluatedPath(path, bucket, 10 * bucket + 5, 1, 1.0, ap))
    return FilteredPaths(
        paths, np.array([0.4, 0.6, 0.39, 0.1, 0.2]), np.array([0.4, np.nan, 0.5]), np.array([0.0, 10.0, 20.0, 30.0])
    )


def test_a_path_at_its_threshold_is_kept_and_no_threshold_prunes_nothing(found):
    assert found.kept.tolist() == [True, True, False, True, True]


def test_the_table_counts_and_averages(found):
    assert table(found)[2:] == [
        "| 1 | 0.400 | 2 | 1 | 55.0 | 30.0 |",
        "| 2 | - | 2 | 0 | 80.0 | - |",
        "| 3 | 0.500 | 0 | 0 | - | - |",
        "| all |  | 4 | 1 | 67.5 | 30.0 |",
    ]


def test_only_buckets_with_both_kinds_are_compared(found):
    assert comparison(found).endswith("+25.0 points, averaged over the 1 buckets that have both; positive in 1.")
    everything = FilteredPaths(found.paths, found.scores, np.full(3, np.nan), found.edges)
    assert comparison(everything) == "No bucket has both kept and pruned paths."


def test_the_picture_and_the_csv_have_every_path(found, tmp_path):
    figure = draw(found, "digits")
    assert [
        sum(len(part.get_offsets()) for part in axes.collections if part.get_label()[0] in "kp") for axes in figure.axes
    ] == [5, 5]
    plt.close(figure)
    write_csv(tmp_path / "figure.csv", found)
    with open(tmp_path / "figure.csv") as opened:
        assert [row["kept"] for row in csv.DictReader(opened)] == ["1", "1", "0", "1", "1"]
