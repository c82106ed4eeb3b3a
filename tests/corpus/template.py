"""Good inputs, small ones, that the cases break."""

import json
from pathlib import Path

import cv2
import numpy as np
from small import detofa_config, pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa.methods.build import make_cost, make_model
from nnabla_detofa.networks import weights
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.path_filter.model import PathFilter
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.pruning import OperationScores
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.tools.evaluate import static_detector
from nnabla_detofa.tools.measure_latency import Latency, write

SPLITS = {"train": 8, "val": 4, "test": 4}
CLASSES = ("cat", "dog")
SIDE = 64
BOX = (9, 9, 40, 48)
RESULT = {"flops": 10, "params": 10, "loss": 1.0, "ap50": 0.5, "ap50_per_class": dict.fromkeys(CLASSES, 0.5)}


def annotation(*objects: str, size: str = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>") -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def an_object(name: object = "cat", corners: tuple = BOX) -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name><bndbox>{tags}</bndbox></object>"


def image(suffix: str, *sides: int) -> bytes:
    """A picture of noise; an alpha channel, or none at all, where a third side says so."""
    pixels = np.random.default_rng(0).integers(0, 256, sides or (SIDE, SIDE, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def make(folder: Path) -> Path:
    """Write all of it: voc, coco, yolo and classes with their configs, folders of each kind of run, weights, and a profile."""
    folder.mkdir()
    _write_data(folder)
    contents = {"voc": detofa_config("voc"), "coco": detofa_config("coco"), "classes": pretrain_config("classes")}
    split = {name: {"annotations": f"{name}.json", "images": name} for name in SPLITS}
    contents["coco"]["dataloader"] = {"coco": {"root": "coco", "image_size": SIDE, "max_objects": 8, **split}}
    contents["yolo"] = detofa_config("yolo")
    contents["yolo"]["dataloader"] = {"yolo": {"root": "yolo", "image_size": SIDE, "max_objects": 8}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    config, pretraining = (configs.from_dict(contents[name], name) for name in ("voc", "classes"))
    _write_run(folder / "run", config)
    _write_fine_tuning(folder / "tuned", config)
    _write_json(folder / "pretrained", {"config": pretraining.to_dict(), "summary": {"accuracy": [0.5], "seconds": {}}})
    classifier = make_model(pretraining, len(CLASSES))
    weights.save(classifier, folder / "supernet.h5")
    (folder / "profile.json").write_text(json.dumps(profile()))
    return folder


def profile() -> dict:
    files = {"config": "classes.json", "supernet": "supernet.h5", "path_filter": "run/path_filter.h5", "fullnet": "supernet.h5"}
    return {
        "data_sets": {"cats": {"title": "cats", "config": "voc.json", "pretraining": files}},
        "starts_runs": False,
        "minutes": {"whole run": 1},
    }


def _write_data(folder: Path) -> None:
    picture, number = image(".jpg"), 0
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / "voc" / part).mkdir(parents=True)
    for split, count in SPLITS.items():
        names = [f"{split}{index}" for index in range(count)]
        (folder / f"voc/ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        (folder / "coco" / split).mkdir(parents=True)
        images, found = [], []
        for index, name in enumerate(names):
            cls = index % len(CLASSES)
            (folder / f"voc/JPEGImages/{name}.jpg").write_bytes(picture)
            (folder / f"voc/Annotations/{name}.xml").write_text(annotation(an_object(CLASSES[cls])))
            (folder / f"coco/{split}/{name}.jpg").write_bytes(picture)
            images.append({"id": index, "file_name": f"{name}.jpg", "height": SIDE, "width": SIDE})
            box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
            found.append({"id": number, "image_id": index, "category_id": cls, "bbox": box, "area": 1209, "iscrowd": 0})
            number += 1
            for part in ("images", "labels"):
                (folder / "yolo" / part / split).mkdir(parents=True, exist_ok=True)
            (folder / f"yolo/images/{split}/{name}.jpg").write_bytes(picture)
            center, sides = ((BOX[0] + BOX[2]) / 2 / SIDE, (BOX[1] + BOX[3]) / 2 / SIDE), (box[2] / SIDE, box[3] / SIDE)
            (folder / f"yolo/labels/{split}/{name}.txt").write_text(" ".join(map(str, (cls, *center, *sides))) + "\n")
        categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": found, "categories": categories}
        (folder / f"coco/{split}.json").write_text(json.dumps(content))
    splits = "".join(f"{split}: images/{split}\n" for split in SPLITS)
    (folder / "yolo/data.yaml").write_text(f"{splits}names: {list(CLASSES)}\n")
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / "classes" / split / name).mkdir(parents=True)
            for index in range(8):
                (folder / "classes" / split / name / f"{index}.png").write_bytes(image(".png", 32, 32, 3))


def _write_json(folder: Path, contents: dict) -> None:
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def _write_fine_tuning(folder: Path, config: configs.Config) -> None:
    """The folder of a finished fine-tuning of the largest path, with weights that were never trained."""
    model = make_model(config, 2)
    path = model.space.largest.to_ofa(model.space.geometry)
    origin = {"run": "run", "detector": "fullnet", "path": path, "weights": "0" * 16}
    results = dict.fromkeys(("before", "finetuned"), RESULT | {"path": path})
    _write_json(folder, {"config": config.to_dict(), "origin": origin, **results})
    weights.save(static_detector(config.network, model, model.space.largest), folder / "finetuned" / "weights.h5")


def _write_run(run: Path, config: configs.Config) -> None:
    """The folder of a finished run of Algorithm 1, with weights that were never trained."""
    model, cost = make_model(config, 2), make_cost(config, 2, (SIDE, SIDE))
    space = ofa_resnet50(config.network.geometry)
    buckets = Buckets(space, cost.flops, config.hparams.buckets)
    paths = space.sample_many(np.random.default_rng(0), 4)
    every = tuple(sorted(space.operations))
    scores = OperationScores(every, np.zeros(len(every)), np.zeros(len(every)))
    subnet = RESULT | {"budget": 20.0, "path": paths[0].to_ofa(space.geometry)}
    contents = {
        "config": config.to_dict(),
        "fullnet": RESULT,
        "subnet_1": subnet,
        "seconds": {"search": 1.0},
        "ledger": {"unit": "core seconds", "phases": {"search": {"kind": "search", "seconds": 1.0}}},
        "operations": {**scores.to_json(), "removed": [], "spared": [], "space": space.to_json()},
        "summary": {"fullnet": RESULT, "subnets": [subnet], "seconds": {"search": 1.0}},
        "subnet_1_detections": [],
    }
    _write_json(run, contents)
    for phase in ("fullnet", "warm_up", "fine_tuning"):
        weights.save(model, run / phase / "weights.h5")
    options = config.hparams.filter
    path_filter = PathFilter(
        space.geometry, 5, options.dim, options.heads, options.layers, options.feed_forward, rng=np.random.default_rng(0)
    )
    for name in ("path_filter", "path_filter_again"):
        path_filter.save(run / f"{name}.h5")
    kept = EvaluatedPaths.open(run / "paths.jsonl", "0" * 16, {"bn_images": 8}, space.geometry)
    for path, flops in zip(paths, cost.flops(paths).tolist()):
        kept.append(EvaluatedPath(path, int(buckets.index(np.array([flops]))[0]), flops, 10, 1.0))
    flops = cost.flops
    table = Latency("latency", "ms", 1e6, space.geometry, flops.stem, flops.first, flops.other, flops.head)
    write(run / "latency.json", table, cost, "none", 1, {})
