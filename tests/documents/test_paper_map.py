"""docs/paper/: whatever the map, the decisions and the inconsistencies name exists, and their numbers are right."""

import dataclasses
import functools
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.paper import table_a3
from nnabla_detofa.paper.filter_tables import RECALL
from nnabla_detofa.paper.reproduce import TARGETS
from nnabla_detofa.paper.table2 import PAPER
from nnabla_detofa.paper.table3 import PAPER as PAPER_TABLE3
from nnabla_detofa.path_filter.ranking import pair_loss, pairs
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.space.search_space import compofa, ofa_resnet50

ROOT = Path(__file__).parents[2]
PAGE = "\n".join((ROOT / f"docs/paper/{name}.md").read_text() for name in ("map", "decisions", "inconsistencies"))
QUOTED = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
SECTIONS = ("args", "network", "dataloader", "optimizer", "hparams")
NAMES = [text for text in QUOTED if re.match(r"[\w/]+\.py: ", text)]
SET_IN = [text for text in QUOTED if re.match(r"\w+\.json: ", text)]
ENTRIES = [text for text in QUOTED if re.match(rf"({'|'.join(SECTIONS)})\.", text)]
MADE = sorted(set(re.findall(r"`make ([^`]+)`", PAGE)))
FIRST_CELLS = re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE)


def value_of(text):
    """What a config has for the text after "="; a word that is no JSON stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def defaults():
    """Dotted key -> its defaults, one for each runner; None where it is a section or has no default."""
    found = {}

    def visit(key, kind, section=None):
        found[key] = [None]
        for field in dataclasses.fields(kind):
            below, default = f"{key}.{field.name}", getattr(section, field.name, field.default)
            if dataclasses.is_dataclass(default):
                visit(below, type(default), default)
            elif default is not dataclasses.MISSING:
                found.setdefault(below, []).append(json.loads(json.dumps(default)))

    visit("args", configs.Args)
    visit("optimizer", configs.Solvers)
    for section, kinds in (("network", configs.NETWORKS), ("dataloader", configs.DATALOADERS)):
        for name, kind in kinds.items():
            visit(f"{section}.{name}", kind)
    for runner in configs.RUNNERS.values():
        visit("hparams", runner.hparams)
    return found


DEFAULTS = defaults()


def test_the_page_names_many_things():
    assert len(NAMES) > 80 and len(ENTRIES) > 50 and len(SET_IN) > 10 and len(MADE) > 12
    assert not [text for text in QUOTED if ".py:" in text and text not in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_in_its_file(name):
    file, _, attribute = name.partition(": ")
    module = importlib.import_module("nnabla_detofa." + file.removesuffix(".py").replace("/", "."))
    functools.reduce(getattr, attribute.split("."), module)
    owner = getattr(module, attribute.split(".")[0])
    assert getattr(owner, "__module__", module.__name__) == module.__name__, "it is only imported there"


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_has_the_default_that_is_given(entry):
    key, equals, text = entry.partition("=")
    assert key in DEFAULTS
    assert not equals or value_of(text) in DEFAULTS[key]


@pytest.mark.parametrize("entry", SET_IN)
def test_a_config_has_the_value_that_is_given(entry):
    file, _, assignment = entry.partition(": ")
    key, _, text = assignment.partition("=")
    content = configs.load(ROOT / "configs" / file).to_dict()
    assert functools.reduce(lambda section, name: section[name], key.split("."), content) == value_of(text)


def test_a_target_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    rules = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert {words.split()[0] for words in MADE} <= rules
    assert {"table1", *TARGETS} <= set(MADE)


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`((?:configs|tests|docs|results)/[^`]+)`|\]\(([^)#]+)\)", PAGE))))
def test_a_file_is_there(file):
    whole, link = file
    assert (ROOT / whole if whole else ROOT / "docs" / "paper" / link).exists()


@pytest.mark.parametrize(
    "kind, numbers",
    [
        ("Eq.", range(1, 7)),
        ("Step", range(1, 5)),
        ("Line", range(1, 18)),
        ("Table", [1, 2, 3, "A1", "A2", "A3"]),
        ("Figure", [*range(1, 11), "A1", "A2"]),
    ],
)
def test_everything_numbered_in_the_paper_has_its_row(kind, numbers):
    rows = [cell for cell in FIRST_CELLS if re.fullmatch(rf"{re.escape(kind)} A?\d+", cell)]
    assert set(rows) == {f"{kind} {number}" for number in numbers}


def test_rows_have_as_many_cells_as_their_header():
    table = []
    for line in [*PAGE.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line.count("|"))
        else:
            assert len(set(table)) <= 1, line
            table = []


def test_anchors_lead_to_headings():
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    anchors = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert anchors and set(anchors) <= headings


# --- Its arithmetic ---------------------------------------------------------------------------------------------------


def tp_and_recall(ratio, accuracy, precision):
    """TP / N and recall that accuracy and precision leave: with a share q predicted, accuracy = 1 - r - q + 2 TP / N."""
    predicted = (accuracy - (1 - ratio)) / (2 * precision - 1)
    return precision * predicted, precision * predicted / ratio


def test_tp_and_recall_by_hand():
    # Of 10 paths 4 are weak; 5 are predicted weak, 3 of them rightly: 2 + 1 of 10 are wrong.
    assert tp_and_recall(0.4, 0.7, 0.6) == pytest.approx((0.3, 0.75))


def test_what_accuracy_and_precision_leave_for_the_column_recall():
    rows = [(name, 0.25, *numbers) for name, numbers in PAPER_TABLE3.items()]
    errors = []
    rows += [("Table A3", ratio, *numbers) for ratio, numbers in table_a3.PAPER.items() if ratio != 0.25]
    for name, ratio, accuracy, precision, column in rows:
        share, recall = tp_and_recall(ratio, accuracy, precision)
        of_right = share / accuracy
        cells = (f"{value:.2f}" for value in (share, recall, of_right))
        assert f"| {name} | {ratio} | {accuracy:.3f} | {precision:.3f} | {' | '.join(cells)} | {column:.3f} |" in PAGE
        errors.append([abs(value - column) for value in (of_right, share, recall)])
    assert len(errors) == 7
    means = tuple(f"{mean:.3f}" for mean in np.mean(errors, axis=0))
    assert "from TP / (TP + TN) by {} on average, from TP / N by {} and from recall by {}".format(*means) in " ".join(
        PAGE.split()
    )
    assert "mean error of {} (TP / N: {}; recall: {})".format(*means) in RECALL


def test_costs_of_table_2():
    def total(method, key):
        return PAPER[method][key][0]

    saved = [100 * (1 - total("detofa", key) / total("ofa-ps", key)) for key in ("voc", "coco")]
    assert "DetOFA costs {:.1f}% and {:.1f}% less than OFA with PS".format(*saved) in PAGE
    more = [100 * (total("detofa", key) / total("ofa", key) - 1) for key in ("voc", "coco")]
    assert "but {:.0f}% and {:.0f}% more than OFA without PS".format(*more) in PAGE
    for key in ("voc", "coco"):
        assert f"{total('ofa-ps', key) / total('ofa', key):.2f}" == "3.00"
    training = {key: PAPER["detofa"][key][0] - PAPER["detofa"][key][1] for key in ("voc", "coco")}
    assert f"{training['voc']:.3f}, {100 * (training['voc'] / total('ofa', 'voc') - 1):.1f}% above 0.383" in PAGE
    assert training["coco"] == pytest.approx(total("ofa", "coco"))


def test_seconds_of_a_path_in_table_2():
    """Of 500 paths (4.1), those of line 4."""
    seconds = [PAPER["detofa"][key][1] * 24 * 3600 / 500 for key in ("voc", "coco")]
    assert "Table 2 is {:.0f} and {:.0f} s for each".format(*seconds) in PAGE


def test_sizes_of_the_spaces():
    assert f"the exact count, {ofa_resnet50().size():,}" in PAGE
    assert f"exact: {compofa().size():,}" in PAGE


def test_epochs_of_progressive_shrinking():
    config = configs.load(ROOT / "configs/coco_detofa.json", ["args.runner=ofa_ps"])
    epochs = [len(phase.epochs) for phase in training_phases(config)[1:]]
    assert f"on COCO {', '.join(map(str, epochs))}" in PAGE and sum(epochs) == 210


def test_how_many_operations_there_are_and_how_many_go():
    space, pruning = ofa_resnet50(), configs.OperationPruning()
    assert f"{space.geometry.stages} x 27 = {len(space.operations)}" in PAGE
    share = 1 - (1 - pruning.r_op1) * (1 - pruning.r_op2)
    assert PAGE.count(f"about {100 * share:.0f}%") == 2


def test_where_the_loss_of_scores_in_0_to_1_is_least():
    order = np.arange(20)
    paired, least = pairs(-order), np.clip(0.5 + (2 * order - 19) / 20, 0, 1)
    assert np.sum(least == 0) == np.sum(least == 1) == 5
    for moved in np.concatenate([np.eye(20), -np.eye(20)]):  # the loss is convex: no path's score may be better elsewhere
        assert pair_loss(np.clip(least + 0.001 * moved, 0, 1), paired) >= pair_loss(least, paired)
