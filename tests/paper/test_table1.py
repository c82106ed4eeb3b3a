"""Table 1: hand-worked values, counts held against enumeration, and what the command writes."""

import csv

import pytest
from small import GEOMETRY, every_path

from nnabla_detofa.cli.program import main
from nnabla_detofa.paper import table1
from nnabla_detofa.space.search_space import compofa, ofa_resnet50


def test_the_papers_formulas_by_hand():
    assert table1.ofa_formula() == (18 * 54 * 162) ** 4 == 157464**4 == pytest.approx(6.1e20, rel=0.01)
    assert table1.compofa_formula() == 9 + 27 + 81 == 117
    assert table1.compofa_formula(4) == 187_388_721


def test_the_exact_counts_by_hand():
    a, comp = ([int(cell) for cell in row[4:6]] for row in table1.rows())
    assert a == [18 * 351**3 * 3159, 351**3 * 3159] and a[0] == 2_458_914_796_962
    assert comp == [18 * 117**3 * 1053, 117**3 * 1053] and comp[0] == 30_356_972_802
    assert table1.stage_sizes(ofa_resnet50()) == (351, 351, 3159, 351)
    assert table1.stage_sizes(compofa()) == (117, 117, 1053, 117)


@pytest.mark.thorough
@pytest.mark.parametrize("row, make", [(0, ofa_resnet50), (1, compofa)])
def test_the_counts_are_those_of_the_enumeration(row, make):
    counted = [len(every_path(make(GEOMETRY, elastic_stem))) for elastic_stem in (True, False)]
    assert [int(cell) for cell in table1.rows(GEOMETRY)[row][4:6]] == counted


def test_the_command_writes_markdown_and_csv(tmp_path, capsys):
    assert main(["table1", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "table1.md").read_text()
    assert text in capsys.readouterr().out
    with open(tmp_path / "table1.csv", newline="") as opened:
        head, *rows = csv.reader(opened)
    assert [row[0] for row in rows] == ["OFA", "CompOFA*"] and head == list(table1.COLUMNS)
    assert all(cell in text for row in rows for cell in row)
