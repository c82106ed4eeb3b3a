"""Knowledge distillation from the frozen fullnet, the additional loss of progressive shrinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..backend.compat import F, nn
from ..space.paths import Path
from . import weights
from .layers import BATCH
from .supernet import Classifier


def distillation_loss(logits: nn.Variable, teacher_logits: nn.Variable) -> nn.Variable:
    """Compute the cross entropy -sum_k q_k log p_k, averaged over the batch.

    p is the softmax of the student and q the softmax of the teacher (temperature 1, as in OFA). The teacher gets no gradient.

    Args:
        logits: student logits (B, K).
        teacher_logits: teacher logits (B, K).

    Returns:
        the loss, a scalar.
    """
    target = F.softmax(teacher_logits, axis=1).apply(need_grad=False)
    return F.mean(F.sum(target * F.log_softmax(logits, axis=1), axis=1)) * -1.0


class Distillation:
    """Training objective (see `training.loop.Objective`) with a distillation loss from the fullnet.

    The teacher normalizes each mini-batch with the statistics of that mini-batch, as in its own training and in the recipes of
    OFA and NNablaNAS. It therefore needs no re-estimated statistics and adapts to the image size.

    Args:
        net: the classification supernet, whose own loss is the hard-label loss.
        path: the path of the fullnet.
        arrays: weights of the trained fullnet under the parameter names of the supernet; they are copied and stay fixed.
        ratio: weight of the distillation loss (OFA's kd_ratio).
    """

    names: tuple[str, ...] = ("loss", "loss from labels", "loss from teacher")

    def __init__(self, net: Classifier, path: Path, arrays: Mapping[str, np.ndarray], ratio: float = 1.0):
        self.net, self.path, self.ratio = net, path, ratio
        self.teacher = net.static(path)
        weights.fill(self.teacher.get_parameters(), arrays, "the fullnet's weights")
        for parameter in self.teacher.get_parameters().values():
            parameter.need_grad = False

    def __call__(
        self, outputs: nn.Variable, images: nn.Variable, targets: Sequence[nn.Variable]
    ) -> tuple[nn.Variable, nn.Variable, nn.Variable]:
        """Return the total loss, the loss from labels, and the unweighted loss from the teacher, each a scalar."""
        (hard,) = self.net.losses(outputs, targets)
        soft = distillation_loss(outputs, self.teacher(images, self.path, BATCH))
        return hard + self.ratio * soft, hard, soft
