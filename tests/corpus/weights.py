"""Weights files, and checkpoints to import."""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from .case import CANARY, Case, inside, put

PARTS = ("voc", "voc.json", "supernet.h5")
RUN = ("run", "-c", "cpu", "-o", "out", "-f", "voc.json", "network.centernet_ofa_resnet50.weights=supernet.h5")
FILTER = ("run", "-c", "cpu", "-o", "out", "-f", "voc.json", "hparams.filter.weights=run/path_filter.h5")
FIRST = "input_stem/0/conv/conv/_W"
FILE = "supernet.h5"


class Code:
    """Unpickled, it makes the canary."""

    def __reduce__(self):
        return os.system, (f"touch ../{CANARY}",)


def edited(change: Callable[[h5py.File], object], name: str = FILE) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with inside(folder), h5py.File(name, "r+") as file:
            change(file)

    return make


def replaced(array: object, **options: object) -> Callable[[Path], None]:
    """Another data set in the place of the first convolution's."""

    def change(file: h5py.File) -> None:
        del file[FIRST]
        file.create_dataset(FIRST, data=array, **options)

    return edited(change)


def filled(value: float, dtype: str = "f4") -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        array = file[FIRST][...].astype(dtype)
        array.flat[0] = value
        del file[FIRST]
        file[FIRST] = array

    return edited(change)


def cut(share: float) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(data[: int(len(data) * share)])

    return make


def link(target: object) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[FIRST]
        file[FIRST] = target

    return edited(change)


def external(file: h5py.File) -> None:
    """A data set whose numbers are the bytes of another file."""
    del file[FIRST]
    secret = str(Path("../secret.txt").resolve())
    file.create_dataset(FIRST, (40,), "u1", external=[(secret, 0, 40)])


def virtual(file: h5py.File) -> None:
    """A data set that is made of another file's."""
    shape = file[FIRST].shape
    del file[FIRST]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", shape)
    file.create_virtual_dataset(FIRST, layout)


def never_written(shape: tuple[int, ...], **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[FIRST]
        file.create_dataset(FIRST, shape, "f4", **options)

    return change


def compressed(file: h5py.File) -> None:
    """300 MB of zeros, of which one piece is written."""
    del file[FIRST]
    data = file.create_dataset(FIRST, (300 << 20,), "u1", chunks=(1 << 20,), compression="gzip")
    data[:10] = 0


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([Code()], dtype=object))
    return file.getvalue()


WEIGHTS: dict[str, tuple] = {
    "empty": (put(FILE, b""), "HDF5"),
    "text": (put(FILE, "weights"), "HDF5"),
    "an archive with a pickle": (put(FILE, npz()), "HDF5"),
    "a pickle": (put(FILE, pickle.dumps(Code())), "HDF5"),
    "the first 8 bytes": (put(FILE, b"\x89HDF\r\n\x1a\n"), "HDF5"),
    "a tenth": (cut(0.1), "HDF5"),
    "half": (cut(0.5), "HDF5"),
    "all but the end": (cut(0.99), "HDF5"),
    "a folder": (lambda folder: [(folder / FILE).unlink(), (folder / FILE).mkdir()], "does not exist"),
    "a device": (lambda folder: [(folder / FILE).unlink(), os.symlink("/dev/zero", folder / FILE)], "does not exist"),
    "no parameters": (edited(lambda file: file.clear()), "no parameters"),
    "a parameter is missing": (edited(lambda file: file.__delitem__(FIRST)), "lacks the parameter", FIRST),
    "a parameter too many": (edited(lambda file: file.create_dataset("more/_W", data=[1.0])), "more/_W"),
    "another shape": (replaced(np.zeros((3, 3), "f4")), FIRST, "shape", "(3, 3)"),
    "a single number": (replaced(np.float32(1)), FIRST, "shape"),
    "nothing at all": (replaced(h5py.Empty("f4")), FIRST, "finite numbers"),
    "NaN": (filled(np.nan), FIRST, "finite numbers"),
    "infinity": (filled(np.inf), FIRST, "finite numbers"),
    "1e300": (filled(1e300, "f8"), FIRST, "finite numbers"),
    "complex numbers": (replaced(np.zeros(3, "c8")), FIRST, "finite numbers"),
    "strings": (replaced(["a", "b"]), FIRST, "finite numbers"),
    "pickled bytes": (replaced(np.void(pickle.dumps(Code()))), FIRST, "finite numbers"),
    "records": (replaced(np.zeros(3, [("a", "f4"), ("b", "i4")])), FIRST, "finite numbers"),
    "truth values": (replaced(np.zeros(3, bool)), FIRST, "finite numbers"),
    "ragged lists": (
        edited(lambda file: [file.__delitem__(FIRST), file.create_dataset(FIRST, (3,), h5py.vlen_dtype("f4"))]),
        FIRST,
        "finite numbers",
    ),
    "references": (
        edited(lambda file: [file.__delitem__(FIRST), file.create_dataset(FIRST, (3,), h5py.ref_dtype)]),
        FIRST,
        "finite numbers",
    ),
    "a link out of the file": (link(h5py.ExternalLink("other.h5", "/x")), FIRST, "lacks the parameter"),
    "a link to itself": (link(h5py.SoftLink(f"/{FIRST}")), FIRST, "lacks the parameter"),
    "the bytes of another file": (edited(external), FIRST, "another file"),
    "a part of another file": (edited(virtual), FIRST, "another file"),
    "4 TB that were never written": (edited(never_written((1 << 40,))), FIRST, "at most"),
    "4 KB that were never written": (edited(never_written((1 << 10,))), FIRST, "stores only 0"),
    "4 KB in chunks that were never written": (edited(never_written((1 << 10,), chunks=(256,))), FIRST, "stores only 0"),
    "300 MB in a few compressed bytes": (edited(compressed), FIRST, "314572800 bytes", "stores only"),
    "8 GB in a few compressed bytes": (
        edited(never_written((1 << 31,), chunks=(1 << 20,), compression="gzip")),
        FIRST,
        "at most",
    ),
}


def settings(**changed: object) -> Callable[[Path], None]:
    """Other settings in the file of a path filter."""
    import json

    def change(file: h5py.File) -> None:
        before = json.loads(file.attrs["path_filter"])
        geometry = before["geometry"] | changed.pop("geometry", {})
        file.attrs["path_filter"] = json.dumps(before | {"geometry": geometry} | changed)

    return edited(change, "run/path_filter.h5")


def attribute(value: object) -> Callable[[Path], None]:
    return edited(lambda file: file.attrs.__setitem__("path_filter", value), "run/path_filter.h5")


FILTERS: dict[str, tuple] = {
    "a supernet": (
        lambda folder: (folder / FILE).rename(folder / "run/path_filter.h5"),
        "not the weights file of a path filter",
    ),
    "no settings": (edited(lambda f: f.attrs.__delitem__("path_filter"), "run/path_filter.h5"), "settings"),
    "settings that are no JSON": (attribute("dim 16"), "settings"),
    "settings that are a number": (attribute(3), "settings"),
    "settings that are a list": (attribute("[]"), "settings"),
    "deep settings": (attribute("[" * 20_000), "settings"),
    "a setting too many": (settings(wings=2), "settings"),
    "no heads": (settings(heads=0), "settings"),
    "a negative dim": (settings(dim=-16), "settings"),
    "a dim that is a string": (settings(dim="16"), "settings"),
    "a huge dim": (settings(dim=1 << 40), "settings"),
    "a huge number of layers": (settings(layers=1 << 40), "settings"),
    "a huge number of buckets": (settings(buckets=1 << 40), "settings"),
    "a huge feed_forward": (settings(feed_forward=1 << 40), "settings"),
    "a huge geometry": (settings(geometry={"base_depths": [1 << 40] * 4}), "settings"),
    "a geometry of strings": (settings(geometry={"depths": ["0", "1"]}), "settings"),
    "another dim": (settings(dim=32), "settings"),
    "another encoding": (settings(encoding="x"), "settings"),
    "another pooling": (settings(pooling="concat"), "pooling"),
}


def cases() -> Iterator[Case]:
    for name, (make, *words) in WEIGHTS.items():
        yield Case("weights", name, RUN, (FILE, *words), make, PARTS)
    for name, (make, *words) in FILTERS.items():
        yield Case("path filter", name, FILTER, ("path_filter.h5", *words), make, (*PARTS, "run"))
    convert = ("import-ofa", "-o", "out.h5")
    kind = "checkpoint"
    pickled = put("a.pth", pickle.dumps({"state_dict": Code()}))
    yield Case(kind, "a pickle that runs code", (*convert, "a.pth"), ("checkpoint",), pickled)
    yield Case(kind, "an archive with a pickle", (*convert, "a.npz"), ("checkpoint",), put("a.npz", npz()))
    yield Case(kind, "text", (*convert, "a.pth"), ("checkpoint",), put("a.pth", "text"))
    yield Case(kind, "missing", (*convert, "a.pth"), ("checkpoint",))
    yield Case(kind, "missing weights", (*convert, "a.h5"), ("a.h5", "does not exist"))
    yield Case(kind, "weights that are text", (*convert, "a.h5"), ("a.h5", "HDF5"), put("a.h5", "text"))
    yield Case(kind, "weights of another network", (*convert, "run/path_filter.h5"), ("classifier",), parts=("run",))
    yield Case(kind, "weights of another width", (*convert, FILE), ("shape",), parts=PARTS)
    strange = edited(
        lambda file: [
            file.__delitem__("classifier/0/linear/linear/_b"),
            file.create_dataset("classifier/0/linear/linear/_b", data=1.0),
        ]
    )
    yield Case(kind, "weights with a single bias", (*convert, FILE), ("classifier",), strange, PARTS)
    yield Case(kind, "another ending", ("import-ofa", FILE, "-o", "out.npz"), ("out.npz", ".h5"), parts=PARTS)
    yield Case(
        kind,
        "an output that is a folder",
        ("import-ofa", FILE, "-o", "out.h5"),
        ("out.h5",),
        lambda f: (f / "out.h5").mkdir(),
        PARTS,
    )
