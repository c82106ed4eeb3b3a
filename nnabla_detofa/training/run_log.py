"""Log file, screen output, TensorBoard curves and progress bars of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from ..common.progress import ProgressBar


class RunLog:
    """Output of a run; only rank 0 writes.

    Call it with a line of text, to write the line to the screen and to the log file.

    Args:
        monitor: NNablaNAS' `ProgressMeter` of the run.
        rank: rank of this process.
    """

    def __init__(self, monitor: Any, rank: int):
        self._monitor, self._rank = monitor, rank
        if rank == 0:  # NNablaNAS opens it in the encoding of the locale, in which a class name may not exist
            monitor.file.reconfigure(encoding="utf-8", errors="backslashreplace")

    def __call__(self, message: str) -> None:
        self._monitor.info(f"{message}\n")

    def to_file(self, message: str) -> None:
        """Write a line only to the log file."""
        self._monitor.info(f"{message}\n", view=False)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to a curve in TensorBoard."""
        if self._rank == 0:
            self._monitor.tb.add_scalar(tag, value, step)

    def image(self, tag: str, picture: Image.Image) -> None:
        """Add an image to TensorBoard."""
        encoded = BytesIO()
        picture.save(encoded, "PNG", compress_level=1)  # the default takes more than twice the time
        width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        self._monitor.tb.add_image(tag, image, 0)

    def add_losses(self, phase: str, names: Sequence[str], losses: Sequence[float]) -> None:
        """Add the losses of a training step to the means that `report_losses` reports."""
        for name, value in zip(names, losses):
            self._monitor.update(f"{name}/{phase}", value)

    def report_losses(self, phase: str, names: Sequence[str], step: int, rate: float) -> float:
        """Write the mean losses since the last report and the learning rate to TensorBoard and the log file.

        Args:
            phase: name of the phase.
            names: names of the losses; the first one is the training loss.
            step: number of training steps of the schedule so far.
            rate: learning rate of the last step.

        Returns:
            The mean training loss.
        """
        means = [self._monitor[f"{name}/{phase}"].avg for name in names]
        self._monitor.write(step)
        self.scalar(f"learning_rate/{phase}", rate, step)
        shown = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means))
        self.to_file(f"{phase} step {step}: {shown}, rate {rate:.2e}")
        self._monitor.meters.clear()  # reset() would keep the meters, and the next phase would write zeros for them
        return means[0]

    def progress(self, name: str, total: int, done: int = 0, unit: str = "step") -> ProgressBar:
        """Create a progress bar with the remaining time; ranks other than 0 show none."""
        return ProgressBar(total=total, initial=done, desc=name, unit=unit, disable=self._rank > 0)

    def watched(self, mapping: Callable, name: str, unit: str) -> Callable[[Callable, Iterable], Iterator]:
        """Return `mapping`, a `map` of the items that it is called with, with a progress bar."""

        def mapped(function: Callable, items: Iterable) -> Iterator:
            items = list(items)
            with self.progress(name, len(items), unit=unit) as bar:
                for result in mapping(function, items):
                    bar.update()
                    yield result

        return mapped

    def close(self) -> None:
        """Close the log files; raise the first write error of TensorBoard's thread, if any."""
        try:
            self._monitor.close()
        finally:
            if self._rank == 0:  # `monitor.close` leaves its file open if it fails to close TensorBoard's
                self._monitor.file.close()
