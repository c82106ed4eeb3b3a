"""configs/schema.json and docs/reference/config.md are generated from today's schema, and every config satisfies it."""

import json
from pathlib import Path

import jsonschema
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.config import reference

ROOT = Path(__file__).parents[2]
SCHEMA = reference.json_schema()
CONFIGS = [
    file
    for file in sorted((ROOT / "configs").rglob("*.json"))
    if not {"profiles", "weights"} & set(file.parts) and file.stem != "schema"
]
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_written_files_are_those_of_today():
    hint = "run make reference"
    assert json.loads((ROOT / "configs/schema.json").read_text()) == json.loads(json.dumps(SCHEMA)), hint
    assert (ROOT / "docs/reference/config.md").read_text() == reference.markdown(), hint


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_names_its_schema_and_satisfies_it(file):
    content = json.loads(file.read_text())
    assert (file.parent / content["$schema"]).resolve() == ROOT / "configs/schema.json"
    VALIDATOR.validate(content)
    if not file.stem.endswith("_base"):
        VALIDATOR.validate(configs.load(file).to_dict())


@pytest.mark.parametrize(
    "section, settings",
    [
        ("args", {"sed": 1}),
        ("args", {"seed": -1}),
        ("args", {"seed": "1"}),
        ("hparams", {"r_path": 1}),
        ("hparams", {"filter": {"pooling": "max"}}),
        ("hparams", {"search": {"generations": 0}}),
        ("network", {"centernet_ofa_resnet50": {"width_scale": 0}}),
        ("network", {"ofa_resnet50": {}, "centernet_ofa_resnet50": {}}),
        ("dataloader", {"voc": {"scale_range": [1]}}),
        ("dataloader", {"voc": {"color": 1}}),
        ("hparam", {}),
    ],
)
def test_what_the_program_rejects_the_schema_rejects(section, settings):
    assert not VALIDATOR.is_valid({section: settings})


def test_both_know_every_key():
    for config in ("digits_detofa", "digits_pretrain", "coco_detofa", "imagenet_pretrain"):
        content = configs.load(ROOT / f"configs/{config}.json").to_dict()
        page = reference.markdown()
        for section in ("args", "optimizer", "hparams"):
            assert all(f"`{section}.{key}" in page for key in content[section])
