"""The fronts of several runs: values and differences by hand, and when a comparison is not fair."""

import json

import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.tools.compare import compare, table

CONTENT = {"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": {"holdout": 10}}}


def result(ap, flops, classes=("cat", "dog"), **more):
    return {"ap50": ap, "flops": flops, "params": 1, "loss": 1.0, "ap50_per_class": dict.fromkeys(classes, ap), **more}


@pytest.fixture
def write(tmp_path):
    """Writes what a comparison reads of a finished run."""

    def made(name, budgets, fullnet=0.5, images=("1", "2"), classes=("cat", "dog"), data=None, **hparams):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        content = CONTENT | {"hparams": hparams, "dataloader": {"voc": CONTENT["dataloader"]["voc"] | (data or {})}}
        subnets = [result(ap, budget - 1, classes, budget=budget) for budget, ap in budgets.items()]
        files = {
            "config": configs.from_dict(content, name).to_dict(),
            "summary": {"fullnet": result(fullnet, 9e9, classes), "subnets": subnets},
            "fullnet_detections": [{"image": image} for image in images],
        }
        for file, entries in files.items():
            (folder / f"{file}.json").write_text(json.dumps(entries))
        return folder

    return made


def test_budgets_and_differences_by_hand(write):
    ours = write("ours", {2e9: 0.6, 1e9: 0.5, 4e9: 0.7})
    found = compare([ours, write("ofa", {1e9: 0.4, 2e9: 0.62, 3e9: 0.9}, fullnet=0.55)])
    assert found["runs"] == ["ours", "ofa"] and found["budgets"] == [1e9, 2e9, 3e9, 4e9]
    assert found["ap"] == [[50, 60, None, 70], [40, 62, 90, None]]
    assert found["mean_difference"] == [0, pytest.approx((-10 + 2) / 2)]
    assert found["fullnet"] == pytest.approx([50, 55]) and found["unfair"] == [] and found["settings"] == {}
    lines = table(found).splitlines()
    assert "| 1 | 50.0 | 40.0 | -10.0 |" in lines and "| 2 | 60.0 | 62.0 | +2.0 |" in lines
    assert "| 3 | - | 90.0 | - |" in lines and "| 4 | 70.0 | - | - |" in lines
    assert "| fullnet | 50.0 | 55.0 | +5.0 |" in lines and "ofa is 4.0 points below ours on average over budgets" in lines


def test_runs_without_a_budget_in_common(write):
    found = compare([write("a", {1e9: 0.5}), write("b", {2e9: 0.5}), write("c", {})])
    assert found["mean_difference"] == [0, None, None]
    assert "b has no budget in common with a" in table(found)


def test_names_are_as_long_as_they_must_be(write):
    found = compare([write("one/demo", {}), write("two/demo", {})])
    assert found["runs"] == ["one/demo", "two/demo"]


@pytest.mark.parametrize(
    "other, reason",
    [
        ({"images": ("2", "3")}, "tested on different images: 2 and 2 images, 1 of them the same"),
        ({"classes": ("cat", "cow")}, "have different classes"),
        ({"data": {"ap_metric": "area"}}, "measure AP by different rules: 11point and area"),
        ({"flip_test": True}, "tested with different hparams.flip_test: false and true"),
        ({"test_scales": [1.0, 2.0]}, "tested with different hparams.test_scales: [1.0] and [1.0, 2.0]"),
        ({"cost_scope": "backbone"}, "for different parts of the network: detector and backbone"),
    ],
)
def test_what_makes_a_comparison_unfair(write, other, reason):
    found = compare([write("a", {1e9: 0.5}), write("b", {1e9: 0.5}), write("c", {1e9: 0.5}, **other)])
    (said,) = found["unfair"]
    assert said.endswith(reason) and "a and c" in said
    assert f"NOT COMPARABLE: {said}" in table(found)


def test_settings_that_differ_are_listed_and_places_are_not(write):
    found = compare([write("a", {}), write("b", {}, r_path=0.5, epochs=3)])
    assert found["settings"] == {"hparams.epochs": [65, 3], "hparams.r_path": [0.25, 0.5]}
    assert "hparams.r_path: 0.25 | 0.5" in table(found) and found["unfair"] == []


def test_the_command_draws(write, tmp_path, capsys):
    folders = [str(write("a", {1e9: 0.5, 2e9: 0.6})), str(write("b", {1e9: 0.4}))]
    assert main(["compare", *folders, "-o", str(tmp_path / "front.png")]) == 0
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", *folders, "--json"]) == 0
    assert '"mean_difference"' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["summary", "fullnet_detections"])
@pytest.mark.parametrize("content", [[], "x", None, 3, float("nan"), {}, {"fullnet": {}, "subnets": [{}]}, [3]])
def test_damaged_files_are_named(name, content, write):
    good, bad = write("good", {1e9: 0.5}), write("bad", {1e9: 0.5})
    (bad / f"{name}.json").write_text(json.dumps(content))
    if name == "fullnet_detections" and content in ([], {}):  # no image, or none by name
        assert "different images" in compare([good, bad])["unfair"][0]
        return
    for runs in ([good, bad], [bad, good]):
        with pytest.raises(UserError, match=f"bad/{name}.json is damaged"):
            compare(runs)


def test_bad_input_is_one_sentence(write, tmp_path, capsys):
    folder = write("a", {1e9: 0.5})
    with pytest.raises(UserError, match="at least two runs, got 1"):
        compare([folder])
    with pytest.raises(UserError, match="different folders"):
        compare([folder, folder])
    (folder / "summary.json").unlink()
    assert main(["compare", str(folder), str(write("b", {}))]) == 2
    assert "is not the folder of a finished run: summary.json is missing" in capsys.readouterr().err
    assert main(["compare", str(folder), str(folder), "-o", str(tmp_path / "front.jpg")]) == 2
    assert "--output must end in .png" in capsys.readouterr().err
