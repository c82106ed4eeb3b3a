"""Our classification supernet inside NNablaNAS' own OFASearcher, from an unmodified source checkout of NNablaNAS.

The searcher calls a network without a path: in training the network has to sample one, in validation it has to keep the one
that `set_valid_arch` sets. `Supernet` does that; the rest is the setting that NNablaNAS' main.py makes of a config.

    python examples/in_nnablanas.py CHECKOUT [--epochs N]        (after: detofa data digits)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def supernet_class() -> type:
    from nnabla_detofa.backend.compat import F, nn
    from nnabla_detofa.evaluation.reestimation import average
    from nnabla_detofa.networks.layers import BATCH, CollectedStatistics, GivenStatistics
    from nnabla_detofa.networks.supernet import SearchNet
    from nnabla_detofa.space.paths import Path as ArchPath

    class Supernet(SearchNet):
        """A `SearchNet` with the interface of NNablaNAS' OFA networks."""

        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.path, self.found, self._rng = self.space.largest, [], np.random.default_rng(0)

        def set_valid_arch(self, genotype):
            depths, ratios, widths = genotype  # one width, or one for each part of the stem and each stage
            geometry = self.space.geometry
            widths = np.broadcast_to(widths, geometry.stages + 2).tolist()
            arch = {"d": depths, "e": ratios, "w": [geometry.widths.index(width) for width in widths]}
            self.path, self.found = ArchPath.from_ofa(arch, geometry), []

        def __call__(self, x):
            if self.training:
                return super().__call__(x, self.space.sample(self._rng), BATCH)
            if nn.get_auto_forward():  # NNablaNAS re-estimates statistics, on training images
                collected = CollectedStatistics()
                y = super().__call__(x, self.path, collected)
                self.found.append(collected.read())
                return y
            statistics = GivenStatistics(average(self.found)) if self.found else BATCH
            return super().__call__(x, self.path, statistics)

        def loss(self, outputs, targets, loss_weights=None):
            return self.losses(outputs[0], targets)[0]

        def metrics(self, outputs, targets):
            return {"error": F.mean(F.top_n_error(outputs[0], targets[0]))}

        def get_net_parameters(self, grad_only=False):
            return self.get_parameters(grad_only)

        def get_arch_parameters(self, grad_only=False):
            return {}  # a path is an argument; nothing about it is trained

    return Supernet


class Images:
    """NNablaNAS' interface of a data loader."""

    transform = None

    def __init__(self, sets, dataset, batch: int, training: bool):
        from nnabla_detofa.data.loader import Loader

        item = sets.train_item if training else lambda dataset, index, rng, size=None: sets.eval_item(dataset, index)
        self._length, self._batches = len(dataset), Loader(dataset, item, batch, seed=0).batches(0)

    def __len__(self) -> int:
        return self._length

    def next(self) -> dict:
        images, labels = map(np.asarray, next(self._batches))
        return {"inputs": [images], "targets": [labels]}


def main(checkout: Path, data: Path, output: Path, epochs: int = 2, batch: int = 16, side: int = 32) -> dict:
    """Train and validate with NNablaNAS' OFASearcher, and return the parameters of the network."""
    sys.path.insert(0, str(checkout))  # before anything imports nnabla_nas
    from nnabla_detofa import config as configs
    from nnabla_detofa.backend.compat import Device, Optimizer, hydra_state
    from nnabla_detofa.data.sets import open_sets

    overrides = [f"dataloader.image_folder.root={data}", f"dataloader.image_folder.image_size={side}"]
    config = configs.load(ROOT / "configs/digits_pretrain.json", overrides)
    sets, device = open_sets(config), Device.open("cpu")
    net = supernet_class()(num_classes=len(sets.classes), width_scale=0.0625, strides=(1, 2, 2, 1))
    from nnabla_nas.runner import OFASearcher

    loaders = {part: Images(sets, getattr(sets, split), batch, part == "train") for part, split in
               (("train", "train"), ("valid", "val"), ("test", "val"))}  # fmt: skip
    solvers = {name: Optimizer(name="Adam", alpha=2e-3) for name in ("train", "train_no_decay")}
    sizes = {f"{kind}_{part}": batch for kind in ("batch_size", "mini_batch") for part in ("train", "valid")}
    largest = ([2] * 5, [0.35] * 18, 1.0)
    hparams = sizes | {
        "epoch": epochs, "validation_frequency": 1, "valid_genotypes": [largest], "valid_image_size_list": [side],
        "train_image_size_list": [side], "input_shapes": [[3, side, side]], "target_shapes": [[1]], "loss_weights": None,
        "lambda_kd": 0, "valid_ce_loss": True, "no_decay_keys": ["_beta", "_gamma", "_b$"], "task": "ofa",
    }  # fmt: skip
    args = {"comm": device.comm, "event": device.event, "output_path": "", "print_frequency": 10, "save_nnp": False}
    with hydra_state(output):
        OFASearcher(net, solvers, {}, loaders, hparams, args).run()
    return {"net": net, "sets": sets}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of NNablaNAS' sources")
    parser.add_argument("--data", type=Path, default=ROOT / "data/digits/classification", help="images (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/in_nnablanas"), help="log and checkpoint (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.checkout / "nnabla_nas/runner").is_dir():  # the installed nnabla-nas would be used instead
        parser.error(f"{arguments.checkout} is not a checkout of NNablaNAS: it has no folder nnabla_nas/runner")
    if not arguments.data.is_dir():
        parser.error(f"the folder of images {arguments.data} does not exist; detofa data digits writes the default one")
    main(**vars(arguments))
