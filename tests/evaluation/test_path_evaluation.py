"""Which paths and images are evaluated, the command evaluate-paths, and the study of how many images are enough."""

import json
import re
import shutil
from pathlib import Path as FilePath

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.evaluation.detections import BoxDetector, average_precision
from nnabla_detofa.evaluation.images import EvaluationImages
from nnabla_detofa.evaluation.path_sampling import distinct_in_buckets, sample_in_buckets
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evaluation.stored import evaluation_settings
from nnabla_detofa.evaluation.validation import PathEvaluator, validation_loss
from nnabla_detofa.methods.build import build
from nnabla_detofa.networks import weights
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPaths
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.tools.image_count_study import image_count_study, image_losses, noise_share, tau_inside
from nnabla_detofa.tools.sampled_paths import evaluate_sampled_paths

OPTIONS = {
    "args": {"context": "cpu", "evaluation_processes": 2},
    "hparams": {"batch_size": 4, "bn_images": 8, "bn_batch": 4},
}
SMALL = {"width_scale": 0.0625, "strides": [1, 2, 2, 1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    return write_digits(root, train=16, val=18, test=6, image_size=64, crops_train=40, crops_val=20)


@pytest.fixture(scope="module")
def detection(data) -> configs.Config:
    network = SMALL | {"deconv_channels": [8, 8], "head_channels": 8, "heatmap_std": 0.1}
    splits = {split: [split] for split in ("train", "val", "test")}
    voc = {"root": str(data), "image_size": 64, "max_objects": 8, **splits}
    content = {"network": {"centernet_ofa_resnet50": network}, "dataloader": {"voc": voc}}
    return configs.from_dict({**OPTIONS, **content}, "detection")


@pytest.fixture(scope="module")
def classification(data) -> configs.Config:
    folder = {"root": str(data / "classification"), "image_size": 32}
    content = {"network": {"ofa_resnet50": SMALL}, "dataloader": {"image_folder": folder}}
    args = OPTIONS["args"] | {"runner": "pretrain"}
    return configs.from_dict({**OPTIONS, "args": args, **content}, "classification")


def written(config: configs.Config, file: FilePath) -> FilePath:
    """The weights of the config's untrained supernet."""
    model, *_ = build(config)
    weights.save(model, file)
    return file


@pytest.fixture(scope="module")
def run(detection, tmp_path_factory) -> FilePath:
    """The folder of a run that got as far as the warm-up."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    written(detection, folder / "warm_up" / "weights.h5")
    (folder / "config.json").write_text(json.dumps(detection.to_dict()))
    return folder


def evaluator_of(model, sets, config: configs.Config, ap_metric: str | None = None) -> PathEvaluator:
    images = EvaluationImages.choose(sets, config.hparams, config.args.seed)
    return PathEvaluator.on(model, images, config.args.evaluation_processes, ap_metric)


def with_hparams(config: configs.Config, **changed) -> configs.Config:
    content = config.to_dict()
    content["hparams"] |= changed
    return configs.from_dict(content, config.name)


# --- Which paths ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def buckets(detection) -> Buckets:
    model, _, cost = build(detection)
    return Buckets(model.space, cost.flops, 5)


def test_sampled_paths_are_as_many_in_each_bucket(buckets):
    paths = sample_in_buckets(buckets, 4, np.random.default_rng(0), buckets.space, print)
    assert buckets.index(buckets.cost(paths)).tolist() == np.repeat(range(5), 4).tolist()


def test_more_distinct_paths_begin_with_the_same_ones(buckets):
    def drawn(per_bucket, name="paths", exclude=()):
        return list(distinct_in_buckets(buckets, per_bucket, 0, name, buckets.space, exclude, print))

    few, many = drawn(5), drawn(70)
    assert len(set(many)) == 350 and set(few) <= set(many)
    assert buckets.index(buckets.cost(many)).tolist() == np.repeat(range(5), 70).tolist()
    assert drawn(5, "others") != few
    others = drawn(70, exclude=set(few))
    assert not set(others) & set(few) and set(others) > set(many) - set(few)


def test_a_bucket_without_enough_paths_gives_what_it_has(buckets):
    space = buckets.space
    top = space.without([op for op in space.operations if (op.depth, op.width) != (2, 1.0)])
    few, heard = Buckets(top, buckets.cost, 1), []
    first = distinct_in_buckets(few, 20, 0, "first", top, (), heard.append)
    assert len(first) == 20 and not heard
    # Five buckets of A, but the space's paths are large: the lower buckets are empty.
    assert len(distinct_in_buckets(buckets, 2, 0, "first", top, (), heard.append)) < 10
    assert heard[0].startswith("FLOPs bucket 1 is empty in the space")


# --- Which images -----------------------------------------------------------------------------------------------------


def test_the_settings_tell_images_apart(detection, classification):
    def settings(config):
        model, sets, cost = build(config)
        buckets = Buckets(model.space, cost.flops, config.hparams.buckets)
        images = EvaluationImages.choose(sets, config.hparams, config.args.seed)
        return evaluation_settings(images, PathEvaluator.on(model, images), buckets, config.args.type_config)

    before = settings(detection)
    assert (before["bn_images"], before["val_images"], before["bn_batch"], before["classes"]) == (8, 18, 4, 10)
    assert settings(detection) == before == json.loads(json.dumps(before))
    other_seed = configs.from_dict(detection.to_dict() | {"args": {"seed": 1}}, "detection")
    assert settings(other_seed)["images"]["statistics"] != before["images"]["statistics"]
    assert settings(other_seed)["images"]["validation"] == before["images"]["validation"]  # all of them
    swapped = detection.to_dict()
    swapped["dataloader"]["voc"] |= {"val": ["test"], "test": ["val"]}
    assert settings(configs.from_dict(swapped, "swapped"))["images"]["validation"] != before["images"]["validation"]
    assert settings(with_hparams(detection, bn_batch=8)) != before
    assert settings(with_hparams(detection, buckets=4)) != before
    assert settings(classification)["images"]["validation"] != before["images"]["validation"]


# --- The function -----------------------------------------------------------------------------------------------------


def test_a_file_is_made_extended_and_gone_on_with(detection, run, tmp_path):
    weights_file, file, heard = run / "warm_up" / "weights.h5", tmp_path / "paths.jsonl", []
    made = evaluate_sampled_paths(detection, weights_file, file, 1, note=heard.append)
    assert re.fullmatch(r"\S+ s per path \(2 processes at once\): graph \S+, re-estimation \S+, validation \S+", heard[0])
    assert made.buckets.tolist() == [0, 1, 2, 3, 4] and {item.ap for item in made.items} == {None}
    lines = file.read_text().splitlines(keepends=True)

    more = evaluate_sampled_paths(detection, weights_file, file, 2)
    assert more.items[:5] == made.items and len(more) == 10
    whole = file.read_text()
    file.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the middle
    done: list[tuple[int, int]] = []
    evaluate_sampled_paths(detection, weights_file, file, 1, progress=lambda *news: done.append(news))
    assert done == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert file.read_text().splitlines() == whole.splitlines()[:6]

    fresh = evaluate_sampled_paths(detection, weights_file, tmp_path / "fresh.jsonl", 1, "fresh", exclude=[file])
    assert not set(fresh.batch) & set(made.batch)
    model, sets, cost = build(detection, pretrained=False)
    weights.load(model, weights_file)
    evaluator = evaluator_of(model, sets, detection)
    np.testing.assert_allclose(evaluator.losses(made.batch), made.losses, rtol=1e-5)
    assert made.flops.tolist() == cost.flops(made.batch).tolist()
    assert [item.params for item in made.items] == cost.params(made.batch).tolist()


def test_ap_is_that_of_the_detector_on_the_validation_images(detection, run, tmp_path):
    found = evaluate_sampled_paths(detection, run / "warm_up" / "weights.h5", tmp_path / "ap.jsonl", 1, ap=True)
    plain = evaluate_sampled_paths(detection, run / "warm_up" / "weights.h5", tmp_path / "paths.jsonl", 1)
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-6)
    model, sets, _ = build(detection, pretrained=False)
    weights.load(model, run / "warm_up" / "weights.h5")
    evaluator = evaluator_of(model, sets, detection, "11point")
    path = found.items[0].path
    detector = BoxDetector(model, path, reestimate(model, path, evaluator.statistics_batches))
    on_validation = type(sets)(**vars(sets) | {"test": sets.val})
    expected, _ = average_precision(detector, on_validation, 4, "area", lambda images: None)
    assert found.aps[0] == pytest.approx(expected["ap50"], abs=1e-6) and 0 <= found.aps.min() <= found.aps.max() <= 1
    perfect = [[(np.asarray(batch[1]) >= 1) * 0.9, *_maps(batch)] for batch in evaluator.validation_batches]
    assert evaluator.truth.ap50(map(model.decode, perfect)) > 0.9


def _maps(batch) -> tuple[np.ndarray, np.ndarray]:
    """Offset and size maps (B, 2, h, w) with a batch's targets at its objects' cells."""
    _, heatmap, size, offset, index, mask = batch
    shape = (len(heatmap), 2, heatmap.shape[2] * heatmap.shape[3])
    maps = np.zeros(shape), np.zeros(shape)
    for image, place in np.argwhere(mask > 0):
        for values, target in zip(maps, (offset, size)):
            values[image, :, int(index[image, place])] = target[image, place]
    return tuple(values.reshape(*shape[:2], *heatmap.shape[2:]) for values in maps)


def test_a_classification_supernet_has_losses_but_no_ap(classification, tmp_path):
    file = written(classification, tmp_path / "supernet.h5")
    assert len(evaluate_sampled_paths(classification, file, tmp_path / "paths.jsonl", 1, images=10, bn_images=4)) == 5
    with pytest.raises(UserError, match="AP needs a detector"):
        evaluate_sampled_paths(classification, file, tmp_path / "ap.jsonl", 1, ap=True)


def test_what_does_not_fit_the_file_is_refused(detection, run, tmp_path):
    weights_file, file = run / "warm_up" / "weights.h5", tmp_path / "paths.jsonl"
    evaluate_sampled_paths(detection, weights_file, file, 1)
    for options, message in (
        ({"images": 8}, "settings.images.validation|settings.val_images"),
        ({"bn_images": 4}, "settings.bn_images 8, this run has 4"),
        ({"ap": True}, "settings.ap_metric None, this run has '11point'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_sampled_paths(detection, weights_file, file, 1, **options)
    model, *_ = build(detection)
    next(iter(model.get_parameters().values())).d *= 1.5
    weights.write(tmp_path / "other.h5", model.get_parameters())
    with pytest.raises(UserError, match="paths evaluated with weights"):
        evaluate_sampled_paths(detection, tmp_path / "other.h5", file, 1)
    other = detection.to_dict()
    other["network"]["centernet_ofa_resnet50"]["width_scale"] = 0.125
    other = configs.from_dict(other, "other")
    with pytest.raises(UserError, match="holds paths of Geometry"):
        evaluate_sampled_paths(other, written(other, tmp_path / "wide.h5"), tmp_path / "new.jsonl", 1, exclude=[file])


# --- The commands -----------------------------------------------------------------------------------------------------


def test_evaluate_paths_by_run_or_by_config(classification, run, tmp_path, capsys):
    output = tmp_path / "paths.jsonl"
    assert main(["evaluate-paths", str(run), "--per-bucket", "1", "-c", "cpu", "-o", str(output)]) == 0
    printed = capsys.readouterr()
    assert "5 paths of the weights" in printed.out and "s per path" in printed.out + printed.err
    assert len(EvaluatedPaths.read(output)) == 5
    config, file = tmp_path / "config.json", written(classification, tmp_path / "supernet.h5")
    config.write_text(json.dumps(classification.to_dict()))
    line = ["evaluate-paths", "-f", str(config), "--weights", str(file), "-c", "cpu", "args.evaluation_processes=1"]
    assert main([*line, "hparams.bn_images=4", "--per-bucket", "1", "-o", str(tmp_path / "more.jsonl")]) == 0
    assert EvaluatedPaths.read(tmp_path / "more.jsonl").settings["bn_images"] == 4


def test_wrong_use_is_one_sentence(classification, run, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(classification.to_dict()))
    file = str(written(classification, tmp_path / "supernet.h5"))
    shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("*.h5"))
    tail = ["--per-bucket", "1", "-c", "cpu", "-o", str(tmp_path / "out.jsonl")]
    for line, message in (
        ([str(tmp_path / "none")], "none is not the folder of a run: config.json is missing"),
        ([str(tmp_path / "begun")], "begun has no weights yet: no training phase has finished"),
        ([str(run), "--weights", "nowhere.h5"], "--weights must be an existing file, in .*, got nowhere.h5"),
        ([str(run), "--pruned"], "operations.json is missing"),
        ([str(run), "-f", str(config)], "either the folder of a run or -f"),
        ([], "either the folder of a run or -f"),
        (["-f", str(config)], "-f needs --weights"),
        (["-f", str(config), "--weights", file, "--ap"], "AP needs a detector"),
        (["-f", str(config), "--weights", file, "--pruned"], "--pruned samples from the pruned space of a run"),
        (["-f", str(config), "--weights", str(run / "warm_up" / "weights.h5")], "this network lacks|lacks the parameter"),
        ([str(run), "--exclude", str(tmp_path / "none.jsonl")], "cannot read the evaluated paths .*none.jsonl"),
        ([str(run), "--images", "0"], "--images must be in .*, got 0"),
    ):
        capsys.readouterr()
        assert main(["evaluate-paths", *line, *tail]) == 2, line
        errors = [error for error in capsys.readouterr().err.splitlines() if error.startswith("error: ")]
        assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert not (tmp_path / "out.jsonl").exists()


# --- The study --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["detection", "classification"])
def test_image_losses_combine_into_the_loss_of_real_batches(kind, request):
    config = request.getfixturevalue(kind)
    model, sets, _ = build(config)
    path = model.space.sample(np.random.default_rng(0))
    evaluator = evaluator_of(model, sets, config)
    statistics, batches = reestimate(model, path, evaluator.statistics_batches), evaluator.validation_batches
    found, count = image_losses(model, path, statistics, batches), sum(len(batch[0]) for batch in batches)
    assert len(batches[-1][0]) < 4 or kind == "classification"
    assert found.loss(np.arange(count), 4) == pytest.approx(validation_loss(model, path, statistics, batches), rel=1e-5)
    one = validation_loss(model, path, statistics, batches[1:2])
    assert found.loss(np.arange(4, 8), 4) == pytest.approx(one, rel=1e-5)
    assert found.loss(np.array([4, 5, 6, 7]), 2) != pytest.approx(one, rel=1e-5) or kind == "classification"


def test_measures_of_two_evaluations_by_hand():
    buckets = np.array([0, 0, 0, 1, 1])
    first, second = np.array([1.0, 2.0, 3.0, 5.0, 6.0]), np.array([1.0, 3.0, 2.0, 15.0, 16.0])
    assert tau_inside(first, second, buckets) == pytest.approx(((2 - 1) / 3 + 1) / 2)
    assert noise_share(first, first + 10 * buckets, buckets) == 0  # a shift of a whole bucket is no noise
    # bucket 0: differences 0, -1, 1 have the variance 1, so one evaluation's noise is 1/2; variances 1 and 1, and 1/2 each.
    assert noise_share(first, second, buckets) == pytest.approx(0.5 / (1 + 0.5))


def test_noise_share_finds_the_noise_that_was_put_in():
    rng, buckets = np.random.default_rng(0), np.repeat(range(5), 400)
    worth = rng.normal(0, 2.0, 2000) + 10 * buckets
    first, second = (worth + rng.normal(0, 1.0, 2000) for _ in range(2))
    assert noise_share(first, second, buckets) == pytest.approx(1 / 5, abs=0.02)


def test_the_study_of_a_small_supernet(classification, tmp_path, capsys):
    file, config = written(classification, tmp_path / "supernet.h5"), tmp_path / "config.json"
    config.write_text(json.dumps(classification.to_dict()))
    found = image_count_study(classification, file, 2, images=20, bn_images=16)
    assert [row.images for row in found.validation] == [8, 10] and [row.images for row in found.reestimation] == [4, 8]
    assert found.paths == 10 and {len(row.full) for row in found.reestimation} == {2}
    assert all(-1 <= tau <= 1 for row in found.validation for tau in (*row.full, *row.halves))
    line = [
        "image-count-study",
        "-f",
        str(config),
        "--weights",
        str(file),
        "--per-bucket",
        "2",
        "--bn-images",
        "16",
        "-c",
        "cpu",
    ]
    assert main([*line, "-o", str(tmp_path / "study.md")]) == 0
    page = (tmp_path / "study.md").read_text()
    assert page in capsys.readouterr().out and f"`detofa {' '.join(line)} -o" in page
    assert main([*line, "--images", "8"]) == 2
    assert "the study needs at least 2 paths per bucket, 16 validation images" in capsys.readouterr().err
