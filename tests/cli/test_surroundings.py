"""Commands without a home folder, open streams, a working folder or a reader; and how they say what is wrong at once."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import forking
import numpy as np
import pytest
import tiny
from small import GEOMETRY, SPACE

from nnabla_detofa.cli import main
from nnabla_detofa.common import progress
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evolution import Constraint, NoPath, at_most, front, search
from nnabla_detofa.runs.run_folder import run_config
from nnabla_detofa.space.costs import AdditiveCost, CostModel, cost_range
from nnabla_detofa.space.geometry import OFA_RESNET50
from nnabla_detofa.space.layer_costs import FORBIDDEN
from nnabla_detofa.space.paths import Path
from nnabla_detofa.tools import search as search_run
from nnabla_detofa.tools.measure_latency import Latency

NOBODY = """
import os, pwd, sys
def missing(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = missing
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
    os.environ.pop(name, None)
from nnabla_detofa.cli import main
statuses = [main(line.split("\\t")) for line in sys.argv[1:]]
assert "MPLCONFIGDIR" not in os.environ
sys.exit(any(statuses))
"""


def run(program, *arguments, **options):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["paper", "--help"], ["train", "--help"], ["train", "nosuch"]])
def test_a_full_disk_for_the_output_is_no_defect(line):
    stream = "stderr" if line[-1] == "nosuch" else "stdout"
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run([sys.executable, "-m", "nnabla_detofa", *line], text=True, **streams)
    assert done.returncode == 2 and "Traceback" not in (done.stderr or "")


TERMINAL = """
import sys, time
from nnabla_detofa.backend.launch import handling
def stop(number, frame):
    raise KeyboardInterrupt
end = time.monotonic() + 60
with handling(stop):
    try:
        while time.monotonic() < end:
            print("o" * 10_000, file=sys.stderr)
            print("o" * 10_000, flush=True)
    except KeyboardInterrupt:
        print("saved", flush=True)
        open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize("seconds", [0, 0.3])  # disowned, it continues meanwhile
def test_what_is_printed_after_the_terminal_is_gone_goes_nowhere(tmp_path, seconds):
    """It would raise, and what is to be saved would not be."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TERMINAL, str(tmp_path / "saved")]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    assert b"ooo" in os.read(ours, 100)
    os.close(ours)
    os.close(theirs)
    time.sleep(seconds)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0 and (tmp_path / "saved").exists()


@pytest.mark.thorough
def test_commands_work_without_a_home_folder_and_a_user(tmp_path):
    folder, image = tiny.detofa_run(), next((tiny.digits() / "JPEGImages").iterdir())
    lines = [
        ["inspect", folder],
        ["compare", folder, tiny.fullnet_run(), "-o", tmp_path / "front.png"],
        ["report", folder, "-o", tmp_path / "report"],
        ["detect", folder, image, "-o", tmp_path / "found"],
        ["-f", tiny.config_file(), "-o", tmp_path / "run", "args.runner=fullnet", "hparams.fullnet_epochs=0"],
    ]
    done = run(NOBODY, *("\t".join(map(str, line)) for line in lines))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "front.png").exists() and (tmp_path / "report" / "pareto.png").exists()


DRAW = """
import os, sys
before = dict(os.environ)
from nnabla_detofa.common import figures
figure, axes = figures.subplots(figsize=(1, 1))
axes.set_title("a_b")
figures.save(figure, sys.argv[1])
assert dict(os.environ) == before
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The same figure with no settings of a user."""
    file = tmp_path_factory.mktemp("drawn") / "drawn.png"
    own = ("MPLBACKEND", "MATPLOTLIBRC", "HOME", "MPLCONFIGDIR")
    done = run(DRAW, file, env={key: text for key, text in os.environ.items() if key not in own}, cwd=file.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return file.read_bytes()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MPLBACKEND", "nothing"),
        ("MATPLOTLIBRC", b"\xff\xfe"),
        ("MATPLOTLIBRC", b"text.usetex: true"),
        ("MATPLOTLIBRC", b"savefig.transparent: true"),
        ("HOME", b"a file"),
        ("MPLCONFIGDIR", b"a file"),
    ],
)
def test_figures_do_not_depend_on_the_users_settings_of_matplotlib(name, value, drawn, tmp_path):
    if isinstance(value, bytes):
        (tmp_path / "file").write_bytes(value)
        value = str(tmp_path / "file")
    done = run(DRAW, tmp_path / "drawn.png", env={**os.environ, name: value}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "drawn.png").read_bytes() == drawn


CLOSED = "import os, sys; [os.close(number) for number in map(int, sys.argv[1].split())]; "
COMMAND = "os.execv(sys.executable, [sys.executable, '-m', 'nnabla_detofa', *sys.argv[2:]])"


@pytest.mark.thorough
@pytest.mark.parametrize("closed", ["2", "1", "0 1 2"])
def test_closed_streams_are_no_error_and_no_file_takes_their_place(closed, tmp_path):
    arguments = ["-f", tiny.config_file(), "-o", tmp_path / "run", "args.runner=fullnet", "hparams.fullnet_epochs=1"]
    done = run(CLOSED + COMMAND, closed, *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert all("step/s" not in file.read_text() for file in (tmp_path / "run").glob("*.json"))


def test_an_error_without_stderr_goes_nowhere():
    done = run(CLOSED + COMMAND, "2", "inspect", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_removed_working_folder_is_one_sentence(tmp_path):
    program = (
        "import os, sys; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); from nnabla_detofa.cli import main; sys.exit(main(%r))"
    )
    for line in (["inspect", "run"], ["-f", "c.json"], ["data", "digits"]):
        done = run(program % line, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: the working folder was removed: "), done.stderr


@pytest.mark.thorough
def test_a_reader_that_has_gone_is_no_folder_that_cannot_be_written(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nnabla_detofa"]
    training = ["-f", tiny.config_file(), "-o", tmp_path / "run", "args.runner=fullnet"]
    paper = ["paper", "tableA1", "--profile", "demo", "-o", tmp_path / "tables"]
    for line, status in (training, 141), (paper, 141), (["inspect", tiny.detofa_run()], 0):
        done = forking.run([*command, *map(str, line)], stdout=writing, stderr=subprocess.PIPE, text=True)
        assert done.returncode == status and "cannot be written" not in done.stderr and "Traceback" not in done.stderr
    os.close(writing)


def test_help_can_be_piped_to_a_reader_that_stops():
    reading, writing = os.pipe()
    os.close(reading)
    for line in ["--help"], ["paper", "--help"], ["train", "--help"]:
        command = [sys.executable, "-m", "nnabla_detofa", *line]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    os.close(writing)


# --- Messages ---------------------------------------------------------------------------------------------------------


def error(capsys, *line):
    capsys.readouterr()
    assert main([str(word) for word in line]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and output.count("\n") == 1, output
    return output


@pytest.mark.parametrize(
    "command", ["report", "evaluate", "inspect", "search", "detect", "compare", "export", "finetune", "export-weights"]
)
def test_a_missing_run_is_reported_before_anything_slow_is_imported(command):
    more = {
        "detect": ["x.jpg"],
        "compare": ["there"],
        "export": ["--detector", "fullnet", "-o", "x.nnp"],
        "finetune": ["--detector", "fullnet", "--epochs", "1", "-o", "x"],
        "export-weights": ["x"],
    }
    program = (
        "import sys; from nnabla_detofa.cli import main; status = main(sys.argv[1:]); "
        "print('nnabla' in sys.modules); sys.exit(status)"
    )
    done = run(program, command, "nowhere", *more.get(command, []))
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "error: nowhere is not the folder of a run: config.json is missing\n"


@pytest.mark.parametrize("typed, meant", [("evalute", "evaluate"), ("reprot", "report"), ("import_ofa", "import-ofa")])
def test_an_unknown_command_gets_the_nearest(typed, meant, capsys):
    assert f"there is no command {typed}; did you mean {meant}?; known are" in error(capsys, typed)


@pytest.mark.parametrize(
    "line, meant",
    [
        (["run", "-f", "x", "--restrat"], "--restart"),
        (["search", "x", "--latencytable=y"], "--latency-table"),
        (["inspect", "x", "--jsn"], "--json"),
    ],
)
def test_an_unknown_flag_gets_the_nearest(line, meant, capsys):
    assert f"did you mean {meant}?" in error(capsys, *line)


@pytest.mark.parametrize(
    "flag, text, words",
    [
        ("--flops", "90", "is 90 multiply-accumulates, less than any path costs; add a unit, as in 3G"),
        ("--flops", "9e2", "is 900 multiply-accumulates, less than any path costs; add a unit, as in 3G"),
        ("--params", "20", "is 20 parameters, less than any path costs; add a unit, as in 20M"),
    ],
)
def test_a_bound_without_a_unit_is_explained(flag, text, words, capsys):
    assert f"{flag} {text} without a unit {words}" in error(capsys, "search", tiny.detofa_run(), flag, text)


def test_no_bar_precedes_an_error(capsys):
    capsys.readouterr()
    for done in (0, 1):
        with pytest.raises(UserError), progress.ProgressBar(total=3, desc="paths") as bar:
            time.sleep(0.2)
            if done:
                bar.update()
            raise UserError
        left = capsys.readouterr().err
        assert left.rpartition("\r")[2] == "" and ("paths" in left) == bool(done)
    with progress.ProgressBar(total=1, desc="paths") as bar:
        time.sleep(0.2)
        bar.update()
    assert "1/1" in capsys.readouterr().err


def test_a_bar_that_only_its_postfix_has_printed_ends_its_line(capsys):
    """Fast steps are printed with their loss before tqdm prints them by itself, after 0.1 s."""
    capsys.readouterr()
    with progress.ProgressBar(total=3, desc="steps") as bar:
        time.sleep(0.005)
        bar.set_postfix_str("loss=2")
    assert capsys.readouterr().err.endswith("\n")
    with pytest.raises(UserError), progress.ProgressBar(total=3, desc="steps") as bar:
        time.sleep(0.005)
        bar.set_postfix_str("loss=2")
        raise UserError
    left = capsys.readouterr().err
    assert "loss=2" in left and left.rpartition("\r")[2] == ""


@pytest.mark.parametrize("name", ["flops", "params", "memory"])
def test_a_bound_one_below_the_smallest_path_does_not_contradict_itself(name):
    cost = getattr(CostModel(64, 10, "backbone", GEOMETRY), name)
    least, _ = cost_range(SPACE, cost)
    rng = np.random.default_rng(0)
    search(SPACE, lambda paths: np.zeros(len(paths)), cost, least, rng, generations=0, population=4)
    with pytest.raises(NoPath) as caught:
        search(SPACE, lambda paths: np.zeros(len(paths)), cost, least - 1, rng, generations=0, population=4)
    said = re.search(r"budget ([0-9.]+) [\w ]+ is below the smallest path; reachable are ([0-9.]+) to", str(caught.value))
    assert said and float(said[1]) < float(said[2])


@pytest.mark.parametrize(
    "cost",
    [
        lambda paths: np.zeros((len(paths), 1)),
        lambda paths: [float("nan")] * len(paths),
        lambda paths: 0.0,
        lambda paths: [str(number) for number in range(len(paths))],
        lambda paths: np.zeros(len(paths) + 1),
    ],
)
def test_costs_of_a_constraint_are_checked_as_scores_are(cost):
    score, rng = (lambda paths: np.zeros(len(paths))), np.random.default_rng(0)
    model = CostModel(64, 10, "backbone", GEOMETRY)
    for call in (
        lambda: search(SPACE, score, cost, 1, rng, 1, 4),
        lambda: search(SPACE, score, model, 1e12, rng, 1, 4, constraints=[Constraint("mine", cost, 1)]),
        lambda: front(SPACE, score, cost, rng, 1, 4),
    ):
        with pytest.raises(ValueError, match="(mine|cost) of .* paths must be as many numbers"):
            call()
    listed = Constraint("mine", lambda paths: [0] * len(paths), 1)
    search(SPACE, score, model, 1e12, rng, 1, 4, constraints=[listed, at_most(model, 1e12)])


@pytest.mark.parametrize("kind", [np.float32, np.float64, float, np.array])
def test_expand_ratios_of_any_kind_of_float_are_accepted(kind):
    path = Path.from_ofa({"d": [0] * 5, "e": np.array([0.35, 0.2, 0.25] * 6, np.float32), "w": [0] * 6})
    values = [kind(ratio) for ratio in [0.35, 0.2, 0.25] * 6]
    assert Path.from_ofa({"d": [0] * 5, "e": values, "w": [0] * 6}) == path
    assert {ratio for stage in path.expand_ratios for ratio in stage} <= set(OFA_RESNET50.ratios)
    with pytest.raises(UserError, match="e of a path must hold only"):
        Path.from_ofa({"d": [0] * 5, "e": np.full(18, 0.2001, np.float32), "w": [0] * 6})


# --- Numbers from files, and settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [sys.maxsize, FORBIDDEN + 1, -sys.maxsize - 1])
def test_a_cost_whose_sums_could_overflow_is_refused(entry):
    flops = CostModel(64, 10, "backbone", GEOMETRY).flops
    tables = {name: getattr(flops, name) for name in ("geometry", "stem", "first", "other", "head")}
    for name in ("stem", "first", "other", "head"):
        table = tables[name][0] if isinstance(tables[name], tuple) else tables[name]
        changed = table.copy()
        changed.flat[0] = entry
        new = (changed, *tables[name][1:]) if isinstance(tables[name], tuple) else changed
        for kind in (AdditiveCost, Latency):
            with pytest.raises(UserError, match=f"must be at most {FORBIDDEN}, so that sums stay exact, got {entry}"):
                kind(name="latency", unit="ms", scale=1e6, **(tables | {name: new}))


@pytest.mark.parametrize(
    "override",
    [
        "network.centernet_ofa_resnet50.width_scale=0.125",
        "network.centernet_ofa_resnet50.head_channels=16",
        "network.centernet_ofa_resnet50.elastic_stem=false",
        "args.runner=ofa",
    ],
)
def test_overrides_that_describe_another_network_are_refused(override, capsys):
    key = override.partition("=")[0]
    for command in ("evaluate", "search"):
        assert f"{key} must not be overridden" in error(capsys, command, tiny.detofa_run(), override)


@pytest.mark.parametrize("override", ["hparams.buckets=3", "dataloader.voc.image_size=128", "hparams.filter.dim=32"])
def test_overrides_that_the_filter_was_not_trained_with_are_refused_by_a_search(override):
    with pytest.raises(UserError, match=f"{override.partition('=')[0]} must not be overridden"):
        search_run.load_run(tiny.detofa_run(), [override])
    run_config(tiny.detofa_run(), [override])
