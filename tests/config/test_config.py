import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_detofa import config as configs
from nnabla_detofa.cli.train import RUNNERS
from nnabla_detofa.common.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SMALLEST = {"network": {"centernet_ofa_resnet50": {}}, "dataloader": {"voc": {"holdout": 100}}}
PRETRAIN = {
    "args": {"runner": "pretrain"},
    "network": {"ofa_resnet50": {}},
    "dataloader": {"image_folder": {"root": "data/imagenet"}},
}


def write(folder, name="run.json", **content):
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def test_the_defaults_are_the_papers():
    config = configs.from_dict(SMALLEST, "run")
    solver, hparams = config.optimizer.train, config.hparams
    assert (solver.name, solver.lr, solver.milestones, solver.gamma) == ("Adam", 5e-4, (45, 60), 0.1)
    assert (hparams.fullnet_epochs, hparams.warmup_epochs, hparams.epochs, hparams.batch_size) == (70, 5, 65, 32)
    assert hparams.buckets * hparams.paths_per_bucket == 500
    assert (hparams.operation_pruning.r_op1, hparams.operation_pruning.r_op2, hparams.r_path) == (0.1, 0.3, 0.25)
    assert (hparams.filter.dim, hparams.filter.heads, hparams.filter.layers, hparams.filter.feed_forward) == (128, 4, 3, 128)
    assert hparams.search.generations == 500
    assert configs.from_dict(PRETRAIN, "run").hparams.paths == 10000
    assert config.network.head_geometry(20).output_stride(config.network.geometry) == 4
    assert config.output_path == Path("runs/run")


SHIPPED = sorted([*CONFIGS.glob("*_*.json"), *CONFIGS.glob("baselines/*.json")])


def test_bccd_in_cocos_format_differs_in_the_data_alone():
    voc, coco = (configs.load(CONFIGS / f"{name}.json") for name in ("bccd_detofa", "bccd_coco_detofa"))
    before, now = voc.to_dict(), coco.to_dict()
    (before_data,), (now_data,) = before.pop("dataloader").values(), now.pop("dataloader").values()
    assert (before["network"], before["optimizer"], before["hparams"]) == (now["network"], now["optimizer"], now["hparams"])
    differing = {key for key in before_data.keys() & now_data.keys() if before_data[key] != now_data[key]}
    assert differing == {"root", "train", "val", "test", "ap_metric"}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_config_that_ships_loads_and_says_how_to_run_it(file):
    if file.stem.endswith("_base"):  # has no data set of its own
        assert json.loads(file.read_text())["about"]
        return
    config = configs.load(file)
    assert f"nnabla_nas -f configs/{file.relative_to(CONFIGS)}" in " ".join(config.about)
    assert configs.from_dict(config.to_dict(), config.name) == config


def test_runners_are_the_same_everywhere():
    assert set(get_args(get_type_hints(configs.Args)["runner"])) == set(configs.RUNNERS) == set(RUNNERS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hparams.r_path=25", "hparams.r_path must be in [0, 0.99], got 25"),
        ("hparams.r_path=0.999", "hparams.r_path must be in [0, 0.99], got 0.999"),
        ("hparams.filter.lr=3", "hparams.filter.lr must be in (0, 1], got 3"),
        ("hparams.r_pth=0.5", "hparams.r_pth is not a key; did you mean r_path?"),
        ("hparams.zzz=1", "hparams.zzz is not a key; known are batch_size, mini_batch, "),
        ("hparam.epochs=1", "hparam is not a key; did you mean hparams?"),
        ("hparams.epochs=2.5", "hparams.epochs must be an integer in [0, 1000000], got 2.5"),
        ("hparams.epochs=true", "hparams.epochs must be an integer in [0, 1000000], got True"),
        (
            "hparams.fullnet_epochs=9223372036854775807",
            "hparams.fullnet_epochs must be in [0, 1000000], got 9223372036854775807",
        ),
        ("hparams.steps_per_epoch=10000000000", "hparams.steps_per_epoch must be in [1, 1000000000], got 10000000000"),
        ("hparams.search.generations=1000001", "hparams.search.generations must be in [1, 1000000], got 1000001"),
        ("hparams.filter.epochs=1000001", "hparams.filter.epochs must be in [1, 1000000], got 1000001"),
        ("optimizer.train.warmup_steps=1000000001", "optimizer.train.warmup_steps must be in [0, 1000000000], got 1000000001"),
        ("hparams.filter=3", "hparams.filter must be a mapping, got 3"),
        ("hparams.filter.dim=130", "hparams.filter.dim must be a multiple of heads (4), got 130"),
        ("hparams.filter.encoding=papper", "must be paper or transformer, got 'papper'; did you mean paper?"),
        ("hparams.search.budgets=3", "hparams.search.budgets must be a list, got 3"),
        ('hparams.search.budgets=["3G", "4Q"]', "hparams.search.budgets[1] must be a number in (0, inf), got '4Q'"),
        ("hparams.mini_batch=5", "hparams.mini_batch must divide batch_size (32), got 5"),
        ("optimizer.train.lr=NaN", "optimizer.train.lr must be in (0, inf), got nan"),
        ("optimizer.train.lr=Infinity", "optimizer.train.lr must be in (0, inf), got inf"),
        ("optimizer.train.milestones=[60, 45]", "optimizer.train.milestones must be in ascending order, got [60, 45]"),
        ("args.context=gpu", "args.context must be auto, cpu or cudnn, got 'gpu'"),
        ("args.seed=-1", "args.seed must be in [0, inf), got -1"),
        ("args.runner=pretrain", "network must be ofa_resnet50 for the runner pretrain, got centernet_ofa_resnet50"),
        (
            "network.ofa_resnet50.width_scale=1",
            "network must have exactly one entry, centernet_ofa_resnet50 or centernet_elastic_neck, got",
        ),
        ("network=3", "network must have exactly one entry, centernet_ofa_resnet50 or centernet_elastic_neck, got 3"),
        ("network.centernet_ofa_resnet50.strides=[1, 2]", "strides must be 4 numbers, one for each stage, got 2"),
        (
            "network.centernet_ofa_resnet50.deconv_channels=[1, 1, 1, 1, 1, 1]",
            "at most 5 values, which double the resolution from stride 32 to 1, got 6",
        ),
        ("dataloader.voc.image_size=100", "dataloader.voc.image_size must be a multiple of 32 (strides), got 100"),
        ("dataloader.voc.scale_range=[1.3, 0.6]", "dataloader.voc.scale_range must be the smallest and the largest scale"),
        ("dataloader.voc.scale_range=[1e-300,1]", "dataloader.voc.scale_range[0] must be in [0.01, 8], got 1e-300"),
        ("dataloader.voc.scale_range=[1]", "dataloader.voc.scale_range must be a list of 2 values, got 1"),
        ('dataloader.voc.val=["val"]', "dataloader.voc.val must name the split that evaluates paths, or else set holdout; got"),
        ("dataloader.voc.root=3", "dataloader.voc.root must be a string, got 3"),
        ("dataloader.coco.holdout=3", "dataloader must have exactly one entry, voc, coco or yolo, got voc and coco"),
        ("about=[1]", "about[0] must be a string, got 1"),
        ("epochs", "an override must look like hparams.epochs=3, without spaces, got 'epochs'"),
        ("hparams..epochs=3", "an override must look like hparams.epochs=3"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_is_allowed(override, message, tmp_path):
    with pytest.raises(UserError) as caught:
        configs.load(write(tmp_path, **SMALLEST), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_default_must_be_there():
    with pytest.raises(UserError, match="dataloader.image_folder.root is missing"):
        configs.from_dict(PRETRAIN | {"dataloader": {"image_folder": {}}}, "run")
    with pytest.raises(
        UserError, match="network must have exactly one entry, centernet_ofa_resnet50 or centernet_elastic_neck, got none"
    ):
        configs.from_dict({}, "run")


def test_overrides_are_json_or_else_strings(tmp_path):
    overrides = ["args.device_id=1", "args.output_path=runs/again", "args.seed=3", "optimizer.train.lr=1", "args.seed=4"]
    overrides += ["dataloader.voc.flip=false", 'hparams.search.budgets=["3G", 250e6, "1.5M"]', "hparams.val_images=null"]
    config = configs.load(write(tmp_path, **SMALLEST), overrides)
    assert (config.args.device_id, config.output_path, config.args.seed) == ("1", Path("runs/again"), 4)
    assert isinstance(config.optimizer.train.lr, float)
    assert config.dataloader.flip is False
    assert config.hparams.search.budgets == (3e9, 250e6, 1.5e6)
    assert config.hparams.val_images is None


@pytest.mark.parametrize(
    "source, classes",
    [
        ('["RBC","WBC"]', ("RBC", "WBC")),
        ("[RBC,WBC]", ("RBC", "WBC")),
        ("[red cell, no]", ("red cell", "no")),
        ("['a,b', c:d]", ("a,b", "c:d")),
    ],
)
def test_strings_in_a_list_need_no_quotes(source, classes, tmp_path):
    config = configs.load(write(tmp_path, **SMALLEST), [f"dataloader.voc.classes={source}"])
    assert config.dataloader.classes == classes
    budgets = configs.load(write(tmp_path, **SMALLEST), ["hparams.search.budgets=[3G,1.5M]"]).hparams.search.budgets
    assert budgets == (3e9, 1.5e6)


@pytest.mark.parametrize("source", ["[RBC", "[RBC,&a *a]", "[[RBC,WBC]", "RBC"])
def test_what_is_not_a_list_is_an_error(source, tmp_path):
    with pytest.raises(UserError, match="dataloader.voc.classes must be"):
        configs.load(write(tmp_path, **SMALLEST), [f"dataloader.voc.classes={source}"])


def test_yaml_means_the_same(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "network: {centernet_ofa_resnet50: {}}\ndataloader: {voc: {holdout: 100}}\n"
        "optimizer: {train: {lr: 5e-4, gamma: 1e-1}}\n"
    )
    assert configs.load(file) == configs.load(write(tmp_path, **SMALLEST))


@pytest.mark.parametrize("name, line_end", [("run.json", "\n"), ("run.json", "\r\n"), ("run.yaml", "\n"), ("run.yaml", "\r\n")])
def test_a_byte_order_mark_is_no_part_of_a_config(name, line_end, tmp_path):
    text = json.dumps(SMALLEST, indent=1).replace("\n", line_end)  # which is YAML too
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert configs.load(tmp_path / name) == configs.load(write(tmp_path, **SMALLEST))


def test_a_config_is_merged_over_its_base(tmp_path):
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases", "lowest.json", **SMALLEST, about="of the lowest", hparams={"epochs": 1, "filter": {"dim": 64}})
    write(tmp_path / "bases", "base.json", base="lowest.json", hparams={"epochs": 2, "search": {"budgets": [1, 2]}})
    file = write(tmp_path, base="bases/base.json", hparams={"filter": {"heads": 2}, "search": {"budgets": [3]}})
    config = configs.load(file)
    assert (config.hparams.epochs, config.hparams.filter.dim, config.hparams.filter.heads) == (2, 64, 2)
    assert config.hparams.search.budgets == (3.0,)
    assert config.about == ()
    assert config.name == "run"


def test_another_network_or_data_set_replaces_that_of_the_base(tmp_path):
    write(tmp_path, "base.json", **SMALLEST)
    config = configs.load(write(tmp_path, base="base.json", **PRETRAIN))
    assert (config.network_name, config.dataloader_name) == ("ofa_resnet50", "image_folder")


def test_a_base_that_leads_back_is_rejected(tmp_path):
    write(tmp_path, "one.json", base="two.json")
    with pytest.raises(UserError, match="is based on itself, through .*one.json"):
        configs.load(write(tmp_path, "two.json", base="one.json"))
    with pytest.raises(UserError, match="base must be the path of a config, relative to run.json, or the name of .* got 3"):
        configs.load(write(tmp_path, base=3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"args": ', "cannot be parsed: line 1: "),
        ("run.json", b'{"args": {}, "args": {}}', "the key 'args' is duplicated"),
        ("run.yaml", b"hparams:\n  epochs: 1\n  epochs: 2\n", "the key 'epochs' is duplicated"),
        ("run.json", b"[1]", "must hold a mapping of sections, got a list"),
        ("run.yaml", b"args: [", "cannot be parsed: "),
        ("run.yaml", b"", "must hold a mapping of sections, got nothing"),
        ("run.json", b"\xff\xfe", "not UTF-8 text"),
        ("run.txt", b"{}", "must end in .json, .yaml or .yml"),
    ],
)
def test_a_file_that_is_no_config_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        configs.load(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the config .*nope.json: No such file or directory"):
        configs.load(tmp_path / "nope.json")


def test_the_hash_is_that_of_the_result():
    def digest(**args):
        return configs.from_dict(SMALLEST | {"args": args}, "run").config_hash

    assert digest() == digest(output_path="elsewhere", workers=0, device_id="1", print_frequency=1, context="cpu")
    assert digest() != digest(seed=1)
    assert configs.from_dict(SMALLEST, "run").config_hash == configs.from_dict(SMALLEST | {"about": "x"}, "other").config_hash


@pytest.mark.parametrize(("runner", "sorts"), [("ofa_ps", False), ("detofa", True)])
def test_a_run_from_before_channels_were_sorted_is_not_taken_for_one_of_today(runner, sorts):
    """Its progressive shrinking did not sort them; a config file without the entry means today's default."""
    content = configs.load(CONFIGS / "coco_detofa.json", [f"args.runner={runner}"]).to_dict()
    today = configs.from_run(content, "run").config_hash
    del content["hparams"]["shrinking_sort"]
    before = configs.from_run(content, "run")
    assert before.hparams.shrinking_sort is sorts and (before.config_hash == today) is sorts
    assert configs.from_dict(content, "new").config_hash == today
    assert configs.from_run(content, "run", ["hparams.shrinking_sort=true"]).config_hash == today


def test_older_keys_are_read_everywhere_and_keep_the_hash(tmp_path):
    """`colour` became `color` and `heat_map_std` `heatmap_std`: in files, bases, overrides, run folders; the hash stays."""
    counts = ["hparams.paths_per_bucket=28", "hparams.heldout_paths_per_bucket=12"]  # of the config when the hash was computed
    current = configs.load(CONFIGS / "digits_detofa.json", counts)
    older = current.to_dict()
    settings = older["dataloader"]["voc"]
    settings["colour"] = settings.pop("color")
    network = older["network"]["centernet_ofa_resnet50"]
    network["heat_map_std"] = network.pop("heatmap_std")
    base = write(tmp_path, "base.json", **older)
    assert not current.dataloader.color and current.config_hash == "3a410189370d617a"
    assert configs.from_run(older, "run").dataloader.color is False
    assert configs.load(base).to_dict() == current.to_dict()
    based = write(tmp_path, "based.json", base="base.json", dataloader={"voc": {"color": True}})
    assert configs.load(based).dataloader.color and not configs.load(based, ["dataloader.voc.colour=false"]).dataloader.color
    settings["color"] = True
    with pytest.raises(UserError, match="dataloader.voc.colour is not a key; did you mean color"):
        configs.load(write(tmp_path, "both.json", **older))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    (section, key)
    for section, content in configs.from_dict(SMALLEST, "run").to_dict().items()
    for key in (content if isinstance(content, dict) else [""])
]


@given(st.sampled_from(KEYS), JSON)
def test_any_value_is_taken_or_rejected_by_name(place, value):
    section, key = place
    try:
        config = configs.from_dict(SMALLEST | {section: {key: value} if key else value}, "run")
    except UserError as error:
        assert str(error).startswith((f"{section}.{key}", section))
    else:
        assert configs.from_dict(config.to_dict(), "run") == config
