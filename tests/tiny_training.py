"""The parts of a training run whose steps take milliseconds."""

import nnabla as nn
import numpy as np

from nnabla_detofa.backend.compat import Optimizer
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.search_space import ofa_resnet50

SMALL = Geometry(width_scale=0.0625)
SPACE = ofa_resnet50(SMALL)


class Uniform:
    """Uniform paths whose random state can be kept."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def next(self):
        return SPACE.sample(self.rng)

    def state(self):
        return self.rng.bit_generator.state

    def restore(self, state):
        self.rng.bit_generator.state = state


def item(dataset, index, rng):
    return rng.normal(size=(3, 32, 32)).astype(np.float32), np.array([index % 3])


def parts(seed=0, rate=1e-3):
    net = Classifier(3, SMALL, rng=np.random.default_rng(seed))
    optimizer = Optimizer(name="Adam", alpha=rate, lr_scheduler=Schedule(rate, "cosine", 20))
    optimizer.set_parameters(net.get_parameters(grad_only=True))
    return net, optimizer, Loader(range(12), item, 4, seed=0, workers=1)


def inputs(size=4):
    return [nn.Variable((size, 3, 32, 32)), nn.Variable((size, 1))]


def values(net):
    return {name: p.d.copy() for name, p in net.get_parameters().items()}
