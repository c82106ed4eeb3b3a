"""The package, its dependencies and its commands `detofa` and `nnabla_nas`.

A wheel also contains the configs, profiles, pre-trained weights and lock files, in nnabla_detofa/shipped; a package in
a clone reads them from the clone (see common/shipped.py).

`make setup` installs the exact versions of requirements.lock first and this package after them: nnabla-nas brings a
command of the same name that cannot work, and the last one installed stays.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = HERE / "nnabla_detofa" / "common" / "version.py"
SHIPPED = ("configs", *(f"requirements{use}.lock" for use in ("", "-cuda116", "-cuda120", "-export")))


class BuildPy(build_py):
    """Copies the shipped files into the package of a wheel."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "nnabla_detofa", "shipped")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in SHIPPED:
            copy = shutil.copytree if (HERE / name).is_dir() else shutil.copy
            copy(HERE / name, folder / name)


setup(
    cmdclass={"build_py": BuildPy},
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
    project_urls={
        "Paper": "https://arxiv.org/abs/2303.13121",
        "NNabla": "https://nnabla.org",
        "NNablaNAS": "https://github.com/sony/nnabla-nas",
    },
    keywords=["neural architecture search", "object detection", "once-for-all", "nnabla", "centernet"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
