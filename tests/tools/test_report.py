"""Where AP50 of VOC's data is printed, both of its metrics are."""

import json

import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.tools.evaluate import table
from nnabla_detofa.tools.inspect import _detector
from nnabla_detofa.tools.report import markdown, table_rows

COMMON = {"flops": 2e9, "params": 3e6, "loss": 1.5, "ap50": 0.5, "ap50_per_class": {"cat": 0.25, "dog": None}}
AREA = COMMON | {"ap50_11point": 0.625, "ap50_11point_per_class": {"cat": 0.375, "dog": None}}
ELEVEN = COMMON | {"ap50_area": 0.625, "ap50_area_per_class": {"cat": 0.375, "dog": None}}
COCO_FIGURES = dict.fromkeys(("AP", "AP75", "APs", "APm", "APl"), 0.125)
COCO = COMMON | {"ap": 0.125, "ap_per_class": {"cat": 0.125, "dog": None}, "coco": COCO_FIGURES}


def summary_of(result):
    return {"fullnet": result, "subnets": [{**result, "budget": 1e9}], "seconds": {"search": 1.0}}


@pytest.mark.parametrize(
    ("result", "columns", "figures"),
    [
        (AREA, ("AP50", "AP50 (11-point)"), ("0.500", "0.625")),
        (ELEVEN, ("AP50", "AP50 (area)"), ("0.500", "0.625")),
        (COCO, ("AP50", "AP", "AP75", "APs", "APm", "APl"), ("0.500", *["0.125"] * 5)),
        (COMMON, ("AP50",), ("0.500",)),
    ],
    ids=["area", "11point", "coco", "before both were kept"],
)
def test_the_reports_table(result, columns, figures):
    found, rows = table_rows(summary_of(result))
    assert found[5:] == columns and [row[5:] for row in rows] == [figures] * 2
    text = markdown(found, rows, summary_of(result))
    assert f"| fullnet |  | 2.0000 | 3.000 | 1.500 | {' | '.join(figures)} |" in text
    others = [title for title in columns if title.startswith("AP50 (")]
    assert text.count(" per class:") == 1 + len(others)
    for title in others:
        assert f"{title} per class:\n\n| detector | cat | dog |\n| --- | ---: | ---: |\n| fullnet | 0.375 | - |" in text
        assert f"{title} averages it" in text  # and what that is


@pytest.mark.parametrize(
    ("result", "head", "row"),
    [
        (AREA, "| class | f AP50 | f AP50 (11-point) |", "| cat | 0.250 | 0.375 |"),
        (ELEVEN, "| class | f AP50 | f AP50 (area) |", "| cat | 0.250 | 0.375 |"),
        (COCO, "| class | f AP | f AP50 |", "| cat | 0.125 | 0.250 |"),
        (COMMON, "| class | f AP50 |", "| cat | 0.250 |"),
    ],
)
def test_the_table_of_evaluate(result, head, row):
    lines = table({"f": result}).splitlines()
    assert lines[0] == head and lines[2] == row and lines[3].startswith("| dog | - |")


@pytest.mark.parametrize(
    ("result", "keys"),
    [(AREA, {"ap50", "ap50_11point"}), (ELEVEN, {"ap50", "ap50_area"}), (COCO, {"ap50", "ap"}), (COMMON, {"ap50"})],
)
def test_inspect_has_every_metric_of_a_result(tmp_path, result, keys):
    (tmp_path / "fullnet.json").write_text(json.dumps(result))
    config = configs.from_dict({"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": {"holdout": 1}}}, "run")
    row = _detector(tmp_path, config, "fullnet", None)
    assert {key for key in row if key.startswith("ap")} == keys and all(row[key] == result[key] for key in keys)
