"""The folder of a finished run without the run: for tests of what reads one."""

import json
from pathlib import Path

import numpy as np
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.methods.build import make_model
from nnabla_detofa.networks import weights


def finished_run(folder: Path, root) -> Path:
    """What tools read of a run on the digits in `root`: a random supernet, and two paths of it as the found subnets."""
    config = configs.from_dict(detofa_config(root), folder.name)
    rng, net = np.random.default_rng(0), make_model(config, 10)
    for name, parameter in net.get_parameters().items():
        if name.endswith(("_gamma", "_beta")):  # residual branches start at gamma 0, where a wrong one would not be seen
            parameter.d = rng.uniform(0.5, 1.5, parameter.shape).astype(np.float32)
    for phase in ("fullnet", "fine_tuning"):
        weights.save(net, folder / phase / "weights.h5")
    classes = dict.fromkeys("0123456789", 0.25)
    paths = [path.to_ofa(net.space.geometry) for path in net.space.sample_many(rng, 2)]
    subnets = [
        {"budget": budget, "ap50": ap, "ap50_per_class": classes, "path": path}
        for budget, ap, path in zip((3e6, 5e6), (0.125, 0.375), paths)
    ]
    results = {f"subnet_{number}": subnet for number, subnet in enumerate(subnets, 1)}
    results |= {"config": config.to_dict(), "fullnet": {"ap50_per_class": classes}, "summary": {"subnets": subnets}}
    for name, content in results.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
