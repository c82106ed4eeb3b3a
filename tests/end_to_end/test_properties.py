"""What holds for any input: parsers give a value that keeps the rules, or a UserError; what is written comes back."""

import json
import string
from copy import deepcopy

import cv2
import h5py
import nnabla as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import GEOMETRY, SPACE, detofa_config, pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.coco import COCODataset
from nnabla_detofa.data.images import check_whole, read_image
from nnabla_detofa.data.voc import VOCDataset
from nnabla_detofa.networks import weights
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import SearchSpace
from nnabla_detofa.tools.bounds import COUNTS, EXAMPLES, LEAST, UNITS, parse_bound

# The same examples each time, however slow the machine is; files that examples overwrite may stay between them.
settings.register_profile(
    "stable", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=150
)
stable = settings(settings.get_profile("stable"))
few = settings(stable, max_examples=40)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=6)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)


def places(content, where=()):
    """Every key, or index, in nested mappings and lists, as a tuple that leads to it."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*where, key)
        yield from places(value, (*where, key))


def mutated(content, changes):
    """A copy of JSON values in which some places hold another value, or are gone (`...`)."""
    content = deepcopy(content)
    for place, value in changes:
        *path, last = place
        inner = content
        try:
            for key in path:
                inner = inner[key]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
        except (TypeError, KeyError, IndexError):  # another change took the place away
            continue
    return content


def changes(content, values=JSON):
    """One to three changes of `content`, for `mutated`."""
    change = st.tuples(st.sampled_from(list(places(content))), values | st.just(...))
    return st.lists(change, min_size=1, max_size=3)


# --- Configs ----------------------------------------------------------------------------------------------------------

CONTENTS = [configs.from_dict(content, "whole").to_dict() for content in (detofa_config("voc"), pretrain_config("classes"))]


@pytest.mark.parametrize("content", CONTENTS, ids=["detofa", "pretrain"])
@given(data=st.data())
@stable
def test_a_mutated_config_is_a_config_or_refused(content, data):
    broken = mutated(content, data.draw(changes(content)))
    try:
        config = configs.from_dict(broken, "run")
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        again = config.to_dict()
        assert configs.from_dict(again, "run") == config
        assert json.loads(json.dumps(again, allow_nan=False)) == again


@given(st.text(max_size=60) | st.text(string.ascii_letters + "{}[]:,&*!#|>-'\" \n.~<?", max_size=60))
@stable
def test_any_text_is_a_config_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    for name in ("text.json", "text.yaml"):
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError):
            configs.load(folder / name)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3).map("=".join))
@stable
def test_any_override_is_taken_or_refused(override):
    try:
        content = configs.overridden(CONTENTS[0], override)
    except UserError:
        return
    assert isinstance(content, dict)


# --- Data sets --------------------------------------------------------------------------------------------------------

PICTURE = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
NUMBERS = st.integers(-5, 60) | st.floats() | st.sampled_from(["", "x", "1e999", "-0", " 3 ", "9" * 50])
OBJECTS = st.lists(
    st.tuples(
        st.sampled_from(["cat", "dog", "", " ", "<", "&x;"]), st.tuples(*[NUMBERS] * 4), st.sampled_from(["0", "1", "x"])
    ),
    max_size=3,
)


def check_objects(dataset, height=30, width=40):
    """Boxes lie in the image, whatever was written; labels are classes."""
    for index in range(len(dataset)):
        boxes, labels, difficult = dataset.objects(index)
        assert boxes.dtype == np.float32 and boxes.shape == (len(labels), 4) and len(difficult) == len(labels)
        assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert ((labels >= 0) & (labels < len(dataset.classes))).all()


@given(objects=OBJECTS, drop=st.sampled_from([None, "name", "xmin", "bndbox", "annotation"]), cut=st.integers(0, 40))
@stable
def test_any_voc_annotation_is_read_or_refused(tmp_path_factory, objects, drop, cut):
    root = tmp_path_factory.getbasetemp() / "voc"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "JPEGImages/a.png").write_bytes(PICTURE)
    text = "<annotation><size><width>40</width><height>30</height></size>"
    for name, corners, difficult in objects:
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        text += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
    text += "</annotation>"
    text = text.replace(f"<{drop}>", "<other>").replace(f"</{drop}>", "</other>") if drop else text
    (root / "Annotations/a.xml").write_text(text[: len(text) - cut] if cut < 20 else text)
    try:
        dataset = VOCDataset(root, "train")
    except UserError as error:
        assert "a.xml" in str(error)
    else:
        check_objects(dataset)
        assert all(dataset.classes)


COCO = {
    "images": [{"id": 3, "file_name": "a.png", "height": 30, "width": 40}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [2, 3, 10, 12], "area": 50.0, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 9, "bbox": [-5, 3.5, 100, 12], "iscrowd": 1},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
}


@given(changes(COCO, JSON | st.sampled_from([3, 7, 9, "a.png", "../a.png", [0, 0, 5, 5], [0, 0, 1e8, 5]])))
@stable
def test_any_coco_file_is_read_or_refused(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.png").write_bytes(PICTURE)
    (folder / "coco.json").write_text(json.dumps(mutated(COCO, changes)))
    try:
        dataset = COCODataset(folder / "coco.json", folder)
        dataset.check_images()
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        check_objects(dataset)
        assert dataset.files == [folder / "a.png"]


ENCODED = [
    cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes()
    for suffix in (".jpg", ".png")
]


@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from(ENCODED), st.integers(0, 800)).map(lambda whole: whole[0][: whole[1]])
    | st.tuples(st.sampled_from(ENCODED), st.integers(0, 700), st.binary(min_size=1, max_size=4)).map(
        lambda whole: whole[0][: whole[1]] + whole[2] + whole[0][whole[1] + len(whole[2]) :]
    )
)
@stable
def test_any_bytes_are_an_image_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.jpg"
    file.write_bytes(data)
    try:
        size = check_whole(file)
        image = read_image(file)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert image.shape[:2] == size


# --- Evaluated paths and bounds ---------------------------------------------------------------------------------------

SOME = list(dict.fromkeys(SPACE.sample_many(np.random.default_rng(0), 12)))
ITEMS = st.lists(
    st.builds(
        EvaluatedPath,
        st.sampled_from(SOME),
        st.integers(0, 4),
        st.integers(0, 10**18),
        st.integers(0, 10**18),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        st.none() | st.floats(0, 1),
    ),
    max_size=5,
    unique_by=lambda item: item.path,
)


def written(file, items) -> EvaluatedPaths:
    file.unlink(missing_ok=True)
    paths = EvaluatedPaths.open(file, "hash", {"bn_images": 8}, GEOMETRY)
    for item in items:
        paths.append(item)
    return paths


@given(items=ITEMS, data=st.data())
@few
def test_evaluated_paths_come_back_and_heal_wherever_they_are_cut(tmp_path_factory, items, data):
    """A line counts as soon as all but its newline is there."""
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    written(file, items)
    assert EvaluatedPaths.read(file, GEOMETRY).items == items
    content = file.read_bytes()
    newlines = [place for place, byte in enumerate(content) if byte == ord("\n")]
    cut = data.draw(st.integers(0, 2000) | st.sampled_from(newlines))
    file.write_bytes(content[:cut])
    lines = sum(cut >= place for place in newlines)
    whole = max(0, lines - 1)
    if lines:
        assert EvaluatedPaths.read(file, GEOMETRY).items == items[:whole]
    else:
        with pytest.raises(UserError, match="no evaluated paths"):
            EvaluatedPaths.read(file, GEOMETRY)
    healed = EvaluatedPaths.open(file, "hash", {"bn_images": 8}, GEOMETRY)
    assert healed.items == items[:whole]
    for item in items[whole:]:
        healed.append(item)
    assert EvaluatedPaths.read(file, GEOMETRY).items == items


@given(data=st.data())
@stable
def test_mutated_evaluated_paths_are_read_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    written(file, [EvaluatedPath(path, 0, 10, 10, 1.0) for path in SOME[:2]])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    broken = mutated(lines, data.draw(changes(lines)))
    file.write_text("".join(f"{json.dumps(line)}\n" for line in broken))
    try:
        paths = EvaluatedPaths.read(file)
    except UserError as error:
        assert "mutated.jsonl" in str(error) and len(str(error)) < 1000
    else:
        assert np.isfinite(paths.losses).all() and (paths.flops >= 0).all() and (paths.buckets >= 0).all()
        assert len(set(paths.batch)) == len(paths)


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-3, 1e15), st.data())
@stable
def test_a_bound_is_its_number_times_its_unit(name, number, data):
    unit = data.draw(st.sampled_from(sorted(UNITS[name])))
    if not unit and number < LEAST:
        with pytest.raises(UserError, match=f"^--{name} .* without a unit is .*; add a unit, as in {EXAMPLES[name]}$"):
            parse_bound(name, f" {number!r} ")
        return
    found = parse_bound(name, f" {number!r} {unit.lower()}")
    assert found == pytest.approx(number * UNITS[name][unit], rel=1e-14)
    assert name in ("latency", "memory") or COUNTS[unit] == UNITS[name][unit]


@given(st.sampled_from(sorted(UNITS)), st.text(max_size=12) | st.text("0123456789.eE+-KMGTBbsmu ", max_size=12))
@stable
def test_any_bound_is_positive_and_finite_or_refused(name, text):
    try:
        assert 0 < parse_bound(name, text) < float("inf")
    except UserError as error:
        known = str(error).startswith(f"--{name} must be a positive number with a unit")
        assert known or ("without a unit" in str(error) and 0 < float(text) < LEAST and "" in UNITS[name])


# --- Paths and spaces -------------------------------------------------------------------------------------------------

OPERATIONS = sorted(SPACE.operations)
SEEDS = st.integers(0, 2**32)


@given(SEEDS)
@stable
def test_a_path_comes_back_from_every_form(seed):
    batch = SPACE.sample_many(np.random.default_rng(seed), 5)
    for path in batch:
        assert Path.from_ofa(path.to_ofa(GEOMETRY), GEOMETRY) == path
        assert Path.from_ofa(json.loads(json.dumps(path.to_ofa(GEOMETRY))), GEOMETRY) == path
        assert path in SPACE
    again = PathBatch.from_paths(list(batch), GEOMETRY)
    for name in ("depths", "widths", "ratios"):
        assert np.array_equal(getattr(again, name), getattr(batch, name))
    assert list(PathBatch.canonical(batch.depths, batch.widths, batch.ratios, GEOMETRY)) == list(batch)
    assert np.array_equal(again.keys, batch.keys)


NOTATION = SPACE.largest.to_ofa(GEOMETRY)


@given(changes(NOTATION, JSON | st.sampled_from([0, 1, 0.2, 0.25, 0.35, True, 1.0])))
@stable
def test_any_notation_is_a_path_or_refused(changes):
    try:
        path = Path.from_ofa(mutated(NOTATION, changes), GEOMETRY)
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        assert Path.from_ofa(path.to_ofa(GEOMETRY), GEOMETRY) == path and path in SPACE


@given(st.sets(st.sampled_from(OPERATIONS)), SEEDS)
@stable
def test_a_pruned_space_gives_only_what_is_left_and_comes_back(removed, seed):
    try:
        space = SPACE.without(removed)
    except UserError:  # nothing would be left in a stage
        assert any(not {o for o in SPACE.operations - removed if o.stage == stage} for stage in range(GEOMETRY.stages))
        return
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert (again, again.removed) == (space, space.removed) == (space, frozenset(removed))
    for path in space.sample_many(np.random.default_rng(seed), 20):
        assert path in space and path in SPACE
        for stage, (depth, width, ratios) in enumerate(zip(path.stage_depths, path.stage_widths, path.expand_ratios)):
            used = {(stage, depth, width, ratio) for ratio in ratios}
            assert not used & {(o.stage, o.depth, o.width, o.ratio) for o in removed}


@given(changes(SPACE.without(OPERATIONS[:2]).to_json()))
@stable
def test_any_space_in_json_is_one_or_refused(changes):
    content = mutated(SPACE.without(OPERATIONS[:2]).to_json(), changes)
    try:
        space = SearchSpace.from_json(content)
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        assert space.size() > 0 and SearchSpace.from_json(space.to_json()) == space


# --- Weights ----------------------------------------------------------------------------------------------------------

ARRAYS = st.dictionaries(
    st.text("abc_", min_size=1, max_size=4).map(lambda name: f"layer/{name}"),
    st.tuples(st.lists(st.integers(1, 4), max_size=3), SEEDS),
    min_size=1,
    max_size=4,
)


@given(ARRAYS, st.none() | st.tuples(*[st.sampled_from([1, 2])] * 4))
@few
def test_weights_come_back(tmp_path_factory, shapes, strides):
    file = tmp_path_factory.getbasetemp() / "any.h5"
    arrays = {name: np.random.default_rng(seed).normal(size=shape).astype(np.float32) for name, (shape, seed) in shapes.items()}
    weights.write(file, {name: nn.Variable.from_numpy_array(array) for name, array in arrays.items()}, strides)
    found = weights.read(file)
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert weights.strides_of(file) == strides


@given(st.integers(0, 4000))
@few
def test_weights_that_are_cut_are_refused(tmp_path_factory, cut):
    file = tmp_path_factory.getbasetemp() / "cut.h5"
    with h5py.File(file, "w") as opened:
        opened["layer/_W"] = np.arange(200, dtype=np.float32)
    data = file.read_bytes()
    file.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(UserError, match="cut.h5"):
        weights.read(file)
