import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare
from small import GEOMETRY, PRUNED, SPACE, every_path, probabilities

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.space.geometry import OFA_RESNET50, Geometry, HeadGeometry
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import (
    Operation,
    PrunedSpace,
    SearchSpace,
    compofa,
    ofa_resnet50,
    product_space,
    shrinking_stages,
)

A = ofa_resnet50()
ARCH = {"d": [2, 0, 1, 2, 0], "e": [0.2, 0.25, 0.35] * 6, "w": [0, 1, 2, 0, 1, 2]}


def test_the_size_of_a_is_the_product_of_its_choices():
    stage = 3 * (3**2 + 3**3 + 3**4)
    third = 3 * (3**4 + 3**5 + 3**6)
    assert A.size() == 18 * stage**3 * third == 2458914796962


EVERY_KIND = [SPACE, PRUNED, compofa(GEOMETRY), ofa_resnet50(GEOMETRY, elastic_stem=False), *shrinking_stages(GEOMETRY)]


@pytest.mark.parametrize("space", EVERY_KIND, ids=lambda space: space.name)
def test_size_is_the_number_of_canonical_paths(space):
    paths = every_path(space)
    assert space.size() == len(paths) == len(set(paths)) == len(set(paths.keys.tolist()))
    assert probabilities(space).sum() == pytest.approx(1)


@pytest.mark.parametrize("space", EVERY_KIND, ids=lambda space: space.name)
def test_sampling_is_uniform_over_choices(space):
    paths = every_path(space)
    row = {key: index for index, key in enumerate(paths.keys.tolist())}
    drawn = space.sample_many(np.random.default_rng(0), 30 * len(paths))
    seen = np.bincount([row[key] for key in drawn.keys.tolist()], minlength=len(paths))
    expected = probabilities(space) * len(drawn)
    assert expected.min() > 5
    assert chisquare(seen, expected).pvalue > 1e-3


def test_sampling_depends_on_the_generator_alone():
    first, second = (A.sample_many(np.random.default_rng(7), 5) for _ in range(2))
    assert list(first) == list(second)
    assert A.sample(np.random.default_rng(7)) == A.sample(np.random.default_rng(7))


def test_ratios_of_inactive_layers_do_not_make_another_path():
    # Stage 1 is at D = 0: two of four layers, so e[2] and e[3] are not active.
    other = {**ARCH, "e": [*ARCH["e"][:2], 0.2, 0.35, *ARCH["e"][4:]]}
    changed = {**ARCH, "e": [0.35, *ARCH["e"][1:]]}
    one, same, different = (Path.from_ofa(arch) for arch in (ARCH, other, changed))
    assert one == same and hash(one) == hash(same) and one != different
    keys = PathBatch.from_paths([one, same, different]).keys
    assert keys[0] == keys[1] != keys[2]
    with_ratios = np.array([[OFA_RESNET50.ratios.index(e) for e in arch["e"]] for arch in (ARCH, other)])
    depths, widths = np.array([ARCH["d"]] * 2), np.array([ARCH["w"]] * 2)
    keys = PathBatch.canonical(depths, widths, with_ratios, OFA_RESNET50).keys
    assert keys[0] == keys[1]


def test_ofa_notation_round_trip():
    path = Path.from_ofa(ARCH)
    assert path.stage_depths == (0, 1, 2, 0) and path.stem_depth == 2
    assert path.stem_widths == (0.65, 0.8) and path.stage_widths == (1.0, 0.65, 0.8, 1.0)
    assert [len(ratios) for ratios in path.expand_ratios] == [2, 3, 6, 2]
    assert path.expand_ratios[1] == (0.25, 0.35, 0.2)
    for path in A.sample_many(np.random.default_rng(1), 50):
        assert Path.from_ofa(path.to_ofa()) == path
        assert Path.from_ofa(json.loads(json.dumps(path.to_ofa()))) == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": [2, 0, 1, 2]}, "d of a path must be a list of 5 values"),
        ({"d": [1, 0, 1, 2, 0]}, "the stem's depth must be one of .*, got 1"),
        ({"d": [2, 0, 1, 3, 0]}, "d of a path must hold only 0, 1 or 2, got 3"),
        ({"e": [0.3] * 18}, "e of a path must hold only 0.2, 0.25 or 0.35, got 0.3"),
        ({"e": 0.35}, "e of a path must be a list of 18 values"),
        ({"w": [0, 1, 2, 0, 1, 3]}, "w of a path must hold only 0, 1 or 2, got 3"),
        ({"w": [0, 1, 2, 0, 1, True]}, "w of a path must hold only 0, 1 or 2, got True"),
        ({"w": [1.0] * 6}, "w of a path must hold only 0, 1 or 2, got 1.0; these are indices of the widths 0.65, 0.8 and 1.0"),
        ({"w": np.ones(6)}, "w of a path must hold only 0, 1 or 2, got "),
    ],
)
def test_from_ofa_names_what_is_wrong(change, message):
    with pytest.raises(UserError, match=message):
        Path.from_ofa({**ARCH, **change})


def test_from_ofa_names_a_missing_key():
    with pytest.raises(UserError, match="w is missing"):
        Path.from_ofa({"d": ARCH["d"], "e": ARCH["e"]})


def test_batches_and_paths_are_the_same_thing():
    batch = A.sample_many(np.random.default_rng(2), 40)
    again = PathBatch.from_paths(list(batch))
    assert (again.keys == batch.keys).all()
    assert list(batch[5:8]) == list(batch)[5:8]
    assert (PathBatch.concatenate([batch[:10], batch[10:]]).keys == batch.keys).all()
    assert len(PathBatch.from_paths([])) == 0


@pytest.mark.parametrize("space", [PRUNED, compofa(GEOMETRY), ofa_resnet50(GEOMETRY, elastic_stem=False)])
def test_contains_many_agrees_with_contains(space):
    paths = every_path(SPACE)
    inside = space.contains_many(paths)
    assert inside.tolist() == [path in space for path in paths]
    assert inside.sum() == space.size()
    assert space.contains_many(space.sample_many(np.random.default_rng(3), 500)).all()


def test_paths_of_other_geometries_are_not_contained():
    assert SPACE.largest not in A and A.largest not in SPACE
    deeper = ofa_resnet50(replace(GEOMETRY, base_depths=(2, 2)))
    assert deeper.largest not in SPACE and SPACE.largest not in deeper


def test_the_largest_path_of_a_is_the_fullnet():
    assert A.largest == Path.from_ofa({"d": [2] * 5, "e": [0.35] * 18, "w": [2] * 6})
    assert all(space.largest == A.largest for space in (compofa(), *shrinking_stages()))


def test_shrinking_stages_are_table_a1():
    chosen = [
        tuple(sorted({getattr(op, key) for op in space.operations}) for key in ("depth", "width", "ratio"))
        for space in shrinking_stages()
    ]
    assert chosen == [
        ([0, 1, 2], [1.0], [0.35]),
        ([0, 1, 2], [0.8, 1.0], [0.35]),
        ([0, 1, 2], [0.65, 0.8, 1.0], [0.35]),
        ([0, 1, 2], [0.65, 0.8, 1.0], [0.25, 0.35]),
        ([0, 1, 2], [0.65, 0.8, 1.0], [0.2, 0.25, 0.35]),
    ]


def figure3() -> PrunedSpace:
    removed = [Operation(0, 1, 1.0, 0.35), *(Operation(1, 2, 0.65, e) for e in (0.2, 0.25, 0.35))]
    return A.without([*removed, Operation(2, 0, 0.65, 0.2), Operation(2, 0, 0.8, 0.2), Operation(2, 0, 1.0, 0.2)])


def test_a_pruned_space_prints_like_figure_3():
    assert str(figure3()) == (
        "A pruned: 101 of 108 operations\n"
        "  stage 1: (D0, *, *), (D1, {W0.65, W0.8}, *), (D1, W1.0, {E0.2, E0.25}), (D2, *, *)\n"
        "  stage 2: (D0, *, *), (D1, *, *), (D2, {W0.8, W1.0}, *)\n"
        "  stage 3: (D0, *, {E0.25, E0.35}), (D1, *, *), (D2, *, *)\n"
        "  stage 4: (*, *, *)"
    )


def test_a_pruned_space_knows_its_parent_and_what_was_removed():
    pruned = figure3()
    assert pruned.parent is A and pruned.operations == A.operations - pruned.removed
    again = pruned.without([Operation(3, 0, 0.65, 0.2)])
    assert again.parent is A and again.removed == pruned.removed | {Operation(3, 0, 0.65, 0.2)}


def test_pruning_rejects_what_makes_no_space():
    with pytest.raises(UserError, match=r"stage 2 \(D2, W0.65, E0.2\) is not an operation of the space A pruned"):
        figure3().without([Operation(1, 2, 0.65, 0.2)])
    with pytest.raises(UserError, match="no operation left in stage 3"):
        A.without(op for op in A.operations if op.stage == 2)


@pytest.mark.parametrize("space", [A, compofa(GEOMETRY), figure3(), PRUNED])
def test_json_round_trip(space):
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space and type(again) is type(space) and hash(again) == hash(space)
    if isinstance(space, PrunedSpace):
        assert again.parent == space.parent and again.removed == space.removed


def test_json_errors_name_the_entry():
    with pytest.raises(UserError, match="geometry"):
        SearchSpace.from_json({key: value for key, value in A.to_json().items() if key != "geometry"})
    data = A.to_json()
    data["operations"][1].append([0, 0.7, 0.2])
    with pytest.raises(UserError, match=r"stage 2 \(D0, W0.7, E0.2\), which is not a choice"):
        SearchSpace.from_json(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["parent"]["geometry"].pop("strides"),
        lambda data: data["parent"]["geometry"].update(stride=[1, 2, 2, 2]),
        lambda data: data["parent"]["geometry"].update(strides=[1, 2, 2]),
        lambda data: data["parent"]["geometry"].update(widths=["a"]),
        lambda data: data["parent"]["operations"].__setitem__(0, [[0, "a", 0.2]]),
        lambda data: data["removed"][3].append([0, 0.65]),
        lambda data: data["removed"].append([[0, 0.65, 0.2]]),
        lambda data: data.update(removed=None),
        lambda data: data.update(parent=[]),
    ],
)
def test_damaged_json_is_one_sentence(damage):
    data = json.loads(json.dumps(figure3().to_json()))
    damage(data)
    with pytest.raises(UserError) as caught:
        SearchSpace.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depths": (0, 2, 1)}, r"depths of the geometry must be one or more numbers in ascending order, got 0, 2, 1"),
        ({"ratios": ([0.2], [0.3])}, "ratios of the geometry must be values that can be hashed and ordered: unhashable type"),
        ({"ratios": (0.2, "0.3")}, "ratios of the geometry must be values that can be hashed and ordered: '<' not supported"),
        (
            {"ratios": ((0.2, 3), (0.2, 5))},
            r"expand_ratio of the geometry must return a number for each choice, got \(0.2, 3\)",
        ),
        ({"widths": (0.5, 0.5)}, "widths of the geometry must be one or more numbers in ascending order"),
        ({"ratios": ()}, "ratios of the geometry must be one or more numbers in ascending order"),
        ({"depths": (-1, 0)}, "depths of the geometry must be integers of 0 or more"),
        ({"depths": (0, 0.5)}, "depths of the geometry must be integers of 0 or more"),
        ({"widths": (0, 1.0)}, "widths of the geometry must be positive and finite"),
        ({"width_scale": float("nan")}, "width_scale of the geometry must be positive and finite, got nan"),
        ({"strides": (1, 2, 0, 2)}, "strides of the geometry must be integers of 1 or more, got 1, 2, 0, 2"),
        ({"stem_channels": 0.5}, "stem_channels of the geometry must be integers of 1 or more"),
        ({"strides": (1, 2, 2)}, "base_depths, stage_channels, strides .* a number for each stage, got 4, 4, 3 numbers"),
        ({"base_depths": (), "stage_channels": (), "strides": ()}, "a number for each stage, got 0, 0, 0 numbers"),
    ],
)
def test_an_odd_geometry_is_rejected(change, message):
    with pytest.raises(UserError, match=message):
        Geometry(**change)


def test_odd_heads_are_rejected():
    for change in ({"num_classes": 2.5}, {"deconv_channels": (256, 0)}, {"head_channels": True}):
        with pytest.raises(UserError, match=f"{next(iter(change))} of the head must be integers of 1 or more"):
            HeadGeometry(**change)


def test_compofa_needs_as_many_depths_as_widths():
    with pytest.raises(UserError, match=r"couples each D with a W; the geometry has the depths \(0, 1\) and the widths"):
        compofa(Geometry(depths=(0, 1)))


def test_a_stem_must_be_a_choice_of_the_geometry():
    with pytest.raises(UserError, match="the stem of the space odd"):
        SearchSpace("odd", A.operations, stem_depths=(1,))
    for widths in ((0.65, 0.65), (1.0, 0.65), ()):
        with pytest.raises(UserError, match="the stem of the space odd .* in ascending order"):
            SearchSpace("odd", A.operations, stem_widths=(widths, (1.0,)))
    assert product_space("any order", (2, 0), (1.0, 0.65), (0.2,)) == product_space("any order", (0, 2), (0.65, 1.0), (0.2,))
    small = product_space("no stem depth left", (1,), (0.65,), (0.2,))
    assert small.stem_depths == (2,) and small.size() == 1


def test_choices_of_one_name_are_rejected():
    """The path filter could not tell them apart, because its tokens are their names."""

    class Named(float):
        def __str__(self):
            return "E"

    with pytest.raises(UserError, match="ratios of the geometry must be choices with different names .*, got E, E"):
        Geometry(ratios=(Named(0.2), Named(0.3)))
