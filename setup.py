"""The package, its dependencies and the command `nnabla_nas`.

`make setup` installs the exact versions of requirements.lock first and this package after them: nnabla-nas brings a
command of the same name that cannot work, and the last one installed stays.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = HERE / "nnabla_detofa" / "common" / "version.py"

setup(
    name="nnabla-detofa",
    version=re.search(r'__version__ = "(.+)"', VERSION.read_text(encoding="utf-8"))[1],
    description="DetOFA in NNabla: once-for-all training of object detectors with a pre-trained supernet and a path filter",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["nnabla_detofa", "nnabla_detofa.*"]),
    package_data={"nnabla_detofa": ["py.typed"]},
    python_requires=">=3.10,<3.11",  # nnabla 1.39 has no wheels for a later Python
    install_requires=[
        "nnabla==1.39.0",
        "nnabla-nas==0.15.0",
        "numpy<2",  # nnabla is compiled against numpy 1, and OpenCV from 4.12 on wants numpy 2
        "opencv-python<4.12",
        "defusedxml",
        "h5py",
        "hydra-core",
        "markdown-it-py",
        "matplotlib",
        "omegaconf",
        "pillow",
        "pycocotools",
        "pyyaml",
        "scikit-learn",
        "scipy",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "cuda110": ["nnabla-ext-cuda110==1.39.0"],
        "cuda116": ["nnabla-ext-cuda116==1.39.0"],
        "cuda120": ["nnabla-ext-cuda120==1.39.0"],
        "mpi": ["mpi4py>=4.1", "openmpi>=5"],  # one run on several processes; make setup has it, a cluster its own
        "torch": ["torch>=2.6"],  # reads the published OFA checkpoints
        "export": ["nnabla-converter==1.39.0", "onnxruntime"],  # brings TensorFlow: make setup-export
        "search": ["pymoo==0.6.2"],  # fronts: NSGA-II
        "dev": ["hypothesis", "import-linter", "jsonschema", "mypy", "pymoo==0.6.2", "pytest", "pytest-xdist", "ruff"],
    },
    entry_points={"console_scripts": ["detofa = nnabla_detofa.cli:main", "nnabla_nas = nnabla_detofa.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
