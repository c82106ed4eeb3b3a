"""Knowledge distillation from the frozen fullnet: what progressive shrinking adds to the supernet's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..backend.compat import F, nn
from ..space.paths import Path
from . import weights
from .layers import BATCH
from .supernet import Classifier


def distillation_loss(logits: nn.Variable, teacher_logits: nn.Variable) -> nn.Variable:
    """Mean over the batch of the cross entropy -sum_k q_k log p_k: logits (B, K) of both -> scalar.

    p is the student's softmax, q the teacher's (temperature 1, as OFA); no gradient reaches the teacher.
    """
    target = F.softmax(teacher_logits, axis=1).apply(need_grad=False)
    return F.mean(F.sum(target * F.log_softmax(logits, axis=1), axis=1)) * -1.0


class Distillation:
    """The objective (see `training.Objective`) of a path that also learns from the teacher.

    The teacher normalises each mini-batch with that mini-batch's own statistics, as its training did and as OFA's and
    NNablaNAS' recipes have it: so it needs no re-estimation, and follows the size of the images.

    Args:
        net: the classification supernet, whose own loss is the hard part.
        path: the fullnet.
        arrays: the trained fullnet's weights by the supernet's names; they are copied, and never trained again.
        ratio: weight of the soft part (OFA's kd_ratio).
    """

    names = ("loss", "loss from labels", "loss from teacher")

    def __init__(self, net: Classifier, path: Path, arrays: Mapping[str, np.ndarray], ratio: float = 1.0):
        self.net, self.path, self.ratio = net, path, ratio
        classes = net.get_parameters()["classifier/0/linear/linear/_b"].shape[0]
        self.teacher = Classifier(classes, net.space.geometry, path=path)
        weights.fill(self.teacher.get_parameters(), arrays, "the fullnet's weights")
        for parameter in self.teacher.get_parameters().values():
            parameter.need_grad = False

    def __call__(
        self, outputs: nn.Variable, images: nn.Variable, targets: Sequence[nn.Variable]
    ) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
        """The whole loss, its part from the labels, and its part from the teacher before weighting."""
        (hard,) = self.net.losses(outputs, targets)
        soft = distillation_loss(outputs, self.teacher(images, self.path, BATCH))
        return hard + self.ratio * soft, hard, soft
