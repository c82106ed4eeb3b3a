"""What the user writes is taken as it is written: names of folders, values in YAML, labels of a figure."""

import os

import pytest
from small import detofa_config, pretrain_config
from tiny import config_file

from nnabla_detofa import config as configs
from nnabla_detofa.backend.compat import hydra_state
from nnabla_detofa.common import figures
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evaluation.images import with_images

NAMES = ("${now:%Y}", "a${oc.env:HOME}b", "${", "a\\${x}", "$x", "{x}", "100%", "a b")


@pytest.mark.parametrize("name", NAMES)
def test_hydra_takes_a_folder_as_it_is_written(name, tmp_path):
    from nnabla_nas.utils.helper import get_output_path

    with hydra_state(tmp_path / name) as folder:
        assert get_output_path() == str(tmp_path / name) == str(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_working_folder_with_an_interpolation_in_its_name(tmp_path, monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    (tmp_path / "${x}").mkdir()
    monkeypatch.chdir(tmp_path / "${x}")
    with hydra_state("run") as folder:
        assert HydraConfig.get().runtime.cwd == os.getcwd() and folder == tmp_path / "${x}" / "run"


def yaml_config(tmp_path, *lines):
    file = tmp_path / "c.yaml"
    file.write_text("\n".join([f"base: {config_file()}", *lines]) + "\n")
    return configs.load(file)


@pytest.mark.parametrize("name", ["0012", "1:30", "2026-01-02", "no", "on", "0x10", "1_000", "0b1", ".inf", "=", "<<"])
def test_yaml_names_are_what_is_written(name, tmp_path):
    assert yaml_config(tmp_path, f"args: {{output_path: {name}}}").args.output_path == name


@pytest.mark.parametrize("value", ["010", "1:30", "0x10", "1_000", "yes"])
def test_yaml_numbers_in_other_forms_than_jsons_are_rejected(value, tmp_path):
    with pytest.raises(UserError, match=f"args.seed must be an integer in .*, got '{value}'"):
        yaml_config(tmp_path, f"args: {{seed: {value}}}")


def test_yaml_values_in_jsons_forms_are_read(tmp_path):
    read = yaml_config(tmp_path, "args: {seed: 12}", "optimizer: {train: {lr: 5e-4, gamma: .5}}", "hparams: {flip_test: True}")
    assert (read.args.seed, read.optimizer.train.lr, read.optimizer.train.gamma, read.hparams.flip_test) == (
        12,
        5e-4,
        0.5,
        True,
    )


PLACES = ("args.output_path", "dataloader.voc.root", "network.centernet_ofa_resnet50.weights", "hparams.filter.weights")


@pytest.mark.parametrize("key", PLACES)
def test_a_tilde_is_the_home_folder_in_every_place_of_a_config(key, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    def value(text):
        found = configs.load(config_file(), [f"{key}={text}"]).to_dict()
        for name in key.split("."):
            found = found[name]
        return found

    assert value("~/x") == f"{tmp_path}/x" and value("~") == str(tmp_path)
    assert [value(text) for text in ("a~", "x/~/y", "~x")] == ["a~", "x/~/y", "~x"]


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize("value", ["a" * 5000, "a" * 256, "/b/" + "é" * 128, "a/" * 3000])
def test_a_path_that_no_file_can_have_is_one_sentence(key, value):
    with pytest.raises(
        UserError, match=rf"^{key}: a path must have at most 4000 characters, with names of at most 255 bytes, got"
    ):
        configs.load(config_file(), [f"{key}={value}"])


def test_a_tilde_without_a_home_folder_is_one_sentence(monkeypatch):
    import pwd

    def missing(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", missing)
    with pytest.raises(UserError, match="~/x needs a home folder, and there is none: set HOME"):
        configs.load(config_file(), ["args.output_path=~/x"])


@pytest.mark.parametrize("name", ["$x$", "_hidden", "a_b", "$", r"\alpha", "$\\frac{$", "50% {x}"])
def test_labels_of_figures_are_drawn_as_they_are_written(name, tmp_path):
    figure, axes = figures.subplots(figsize=(2, 2))
    axes.plot([0, 1], [0, 1], label=figures.plain(name))
    legend = axes.legend()
    assert len(legend.get_texts()) == 1
    title, note = axes.set_title(name), axes.text(0, 0, name)
    axes.set(xlabel=name, xscale="log")
    figures.save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    for text in (title, note, axes.xaxis.label, *legend.get_texts()):
        assert text._preprocess_math(text.get_text()) == (text.get_text(), False)
    assert any(label.get_parse_math() for label in axes.get_xticklabels())  # powers of ten are formulas


# --- Settings that mean nothing together ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["hparams.batch_size=1"], "batch_size must be at least 2"),
        (["hparams.mini_batch=1"], "hparams.mini_batch must be at least 2"),
        (["hparams.bn_batch=1"], "hparams.bn_batch must be at least 2"),
        (["hparams.bn_images=1"], "hparams.bn_images must be at least 2"),
    ],
)
def test_one_value_for_batch_normalization_is_rejected(overrides, key):
    content = detofa_config("data")
    content["dataloader"]["voc"]["image_size"] = 32
    content["network"]["centernet_ofa_resnet50"]["strides"] = [2, 2, 2, 1]
    for override in overrides:
        content = configs.overridden(content, override)
    with pytest.raises(UserError, match=f"{key} for a last feature map of 1 x 1"):
        configs.from_dict(content, "c")
    content["dataloader"]["voc"]["image_size"] = 64
    configs.from_dict(content, "c")


def test_few_images_of_an_evaluation_are_one_value_for_batch_normalization():
    content = detofa_config("data")
    content["dataloader"]["voc"]["image_size"] = 32
    content["network"]["centernet_ofa_resnet50"]["strides"] = [2, 2, 2, 1]
    config = configs.from_dict(content, "c")
    with pytest.raises(UserError, match="bn_images must be at least 2 for a last feature map of 1 x 1"):
        with_images(config, bn_images=1)
    assert with_images(config, images=1, bn_images=2).bn_images == 2


def with_overrides(content, *overrides):
    for override in overrides:
        content = configs.overridden(content, override)
    return configs.from_dict(content, "c")


@pytest.mark.parametrize(
    "overrides, least, paths",
    [
        (["hparams.filter.batch_size=1"], 6, "30 training paths contain pairs in one FLOPs bucket"),
        (
            ["hparams.filter.batch_size=5", "hparams.filter.pairs=both"],
            6,
            "30 training paths contain pairs in one FLOPs bucket",
        ),
        (["hparams.filter.batch_size=1", "hparams.filter.pairs=all"], 2, "30 training paths contain pairs,"),
        (["hparams.buckets=32"], 39, "192 training paths contain pairs in one FLOPs bucket"),
        (["hparams.buckets=1000", "args.runner=ofa"], 1200, "6000 training paths contain pairs in one FLOPs bucket"),
    ],
)
def test_mini_batches_without_a_pair_of_paths_are_rejected(overrides, least, paths):
    """A bucket has 8 paths, 6 of them for training."""
    with pytest.raises(UserError, match=f"filter.batch_size must be at least {least}, so that mini-batches of the {paths}"):
        with_overrides(detofa_config("data"), *overrides)
    with_overrides(detofa_config("data"), *overrides, f"hparams.filter.batch_size={least}")
    with_overrides(detofa_config("data"), *overrides, "args.runner=fullnet")  # has no path filter


def test_a_pre_training_without_paths_has_no_mini_batches_of_them():
    with pytest.raises(UserError, match="hparams.filter.batch_size must be at least 6"):
        with_overrides(pretrain_config("data"), "hparams.filter.batch_size=5")
    with_overrides(pretrain_config("data"), "hparams.filter.batch_size=5", "hparams.paths=0")


@pytest.mark.parametrize(
    "mini, phase, wrong",
    [(None, 24, "mini_batch, which is batch_size if it is null,"), (None, 8, "mini_batch"), (16, 8, "mini_batch"), (8, 24, "")],
)
def test_every_phase_s_batch_is_divided_alike(mini, phase, wrong):
    content = pretrain_config("data")
    entry = {"name": "depth", "depths": [0, 2], "widths": [1.0], "ratios": [0.35], "epochs": 1, "batch_size": phase}
    content["hparams"] |= {"batch_size": 16, "mini_batch": mini, "shrinking": [entry]}
    if not wrong:
        configs.from_dict(content, "c")
        return
    with pytest.raises(UserError, match=rf"{wrong}.* must divide the {phase} images of a step of depth, got 16"):
        configs.from_dict(content, "c")


@pytest.mark.parametrize("warmup, epochs, allowed", [(3, 2, False), (1000, 999, False), (2, 2, True), (3, 0, True)])
def test_a_warm_up_longer_than_its_phase_is_rejected(warmup, epochs, allowed):
    phase = {"name": "depth", "depths": [0, 2], "widths": [1.0], "ratios": [0.35], "epochs": epochs, "warmup_epochs": warmup}
    content = pretrain_config("data")
    content["hparams"]["shrinking"] = [phase]
    if allowed:
        configs.from_dict(content, "c")
        return
    with pytest.raises(UserError, match=rf"shrinking\[0\].warmup_epochs must be at most the {epochs} epochs .*, got {warmup}"):
        configs.from_dict(content, "c")


def test_a_search_whose_children_are_their_parents_is_rejected():
    same = ["hparams.search.mutation_ratio=1", "hparams.search.mutate_prob=0"]
    with pytest.raises(UserError, match="hparams.search.mutate_prob must be above 0 if all children are mutants"):
        with_overrides(detofa_config("data"), *same)
    for other in ("hparams.search.mutation_ratio=0.9", "hparams.search.mutate_prob=0.1"):
        with_overrides(detofa_config("data"), *same, other)


@pytest.mark.parametrize("classes", [[], [""], ["cat", " "], ["cat", "cat"], ["\u00e9", "e\u0301"]])
def test_classes_that_no_object_can_have_are_rejected(classes):
    content = detofa_config("data")
    content["dataloader"]["voc"]["classes"] = classes
    with pytest.raises(UserError, match="dataloader.voc.classes must name at least one class, and each once, got"):
        configs.from_dict(content, "c")


@pytest.mark.parametrize("key, value", [("crop_area", [1e-300, 1e-300]), ("crop_area", [0, 1]), ("center_share", 1e-6)])
def test_crops_that_hold_nothing_are_rejected(key, value):
    content = pretrain_config("data")
    content["dataloader"]["image_folder"][key] = value
    with pytest.raises(UserError, match=rf"dataloader.image_folder.{key}.* must be in \[0.001, 1\], got"):
        configs.from_dict(content, "c")
