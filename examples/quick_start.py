"""First steps: load weights, draw a path, count what it costs, score it by the path filter, run it on an image.

With a finished run (`make demo`) the path is a detector, otherwise a classifier of single digits, from configs/weights/.
"""

import argparse
from pathlib import Path

import nnabla as nn
import numpy as np

from nnabla_detofa import load_supernet
from nnabla_detofa.data.augment import letterbox
from nnabla_detofa.data.images import read_image
from nnabla_detofa.evaluation.detections import BoxDetector
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.networks.layers import GivenStatistics
from nnabla_detofa.path_filter.model import PathFilter, PathScorer
from nnabla_detofa.runs.run_folder import final_weights
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.tools.search import load_run

ROOT = Path(__file__).parent.parent


def main(run: Path = ROOT / "runs/demo", data: Path = ROOT / "data/digits", seed: int = 0) -> dict:
    if detects := (run / "summary.json").exists():
        done = load_run(run)
        net, side = load_supernet(final_weights(run, done.config), "detection"), done.config.dataloader.image_size
        cost, buckets, scorer = done.costs["flops"], done.buckets, done.scorer
    else:
        net, side = load_supernet(ROOT / "configs/weights/digits_supernet.h5"), 64
        cost = CostModel(side, 10, "backbone", net.space.geometry).flops
        buckets = Buckets(net.space, cost)
        scorer = PathScorer(PathFilter.load(ROOT / "configs/weights/digits_path_filter.h5"), cost, buckets.index)
    rng = np.random.default_rng(seed)
    batch = net.space.sample_many(rng, 1)
    path, flops, score = batch[0], cost(batch)[0], scorer(batch)[0]
    others = scorer(buckets.sample(buckets.index(flops), 200, rng))
    print(f"{path}\n{cost.text(flops)}, score {score:.3f}, above {np.mean(others < score):.0%} of those in its FLOPs bucket")

    names = "JPEGImages/{}_*.jpg" if detects else "classification/{}/*/*.jpg"
    seen, new = (sorted(data.glob(names.format(split))) for split in ("train", "test" if detects else "val"))
    if seen and new:
        # Batch-normalization statistics belong to a path: those stored in the file are of none.
        images = np.stack([letterbox(read_image(file), (side, side), net.normalization)[0] for file in seen[::7][:64]])
        statistics = reestimate(net, path, [images])
        image, matrix = letterbox(read_image(new[0]), (side, side), net.normalization)
        if detects:
            for box, likely, label in zip(*BoxDetector(net, path, statistics, top=4)(image[None], matrix[None])[0]):
                print(f"{new[0].name}: a {label} ({likely:.2f}) at {box.round().astype(int).tolist()}")
        else:
            logits = net(nn.Variable.from_numpy_array(image[None]), path, GivenStatistics(statistics))
            logits.forward()
            print(f"{'/'.join(new[0].parts[-2:])} shows a {logits.d.argmax()}")
    return {"net": net, "path": path, "flops": int(flops), "score": float(score), "others": others}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs/demo", help="folder of a finished run (default: runs/demo)")
    main(parser.parse_args().run)
