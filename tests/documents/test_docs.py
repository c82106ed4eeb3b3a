"""The documents: every command is known and parses, every link leads somewhere. `make test-docs` runs the commands."""

import ast
import re
import subprocess
from pathlib import Path

import documented
import numpy as np
import pytest

import docs
import nnabla_detofa
from nnabla_detofa import config as configs
from nnabla_detofa.cli import program as cli
from nnabla_detofa.cli import reference
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper.intervals import Values

ROOT = documented.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = list({command.text: command for command in documented.everything() if command.text != "its Python code"}.values())
EXPERIMENTS = [
    file for file in documented.config_files() if not file.startswith("configs/profiles") and "base.json" not in file
]
SPANS = [(page, text) for page in documented.PAGES for _, text in documented.spans(page)]


def test_the_commands_are_found():
    texts = {command.text for command in COMMANDS}
    assert {"make demo", "make test", "make help", "make paper PROFILE=paper"} <= texts
    assert "mpirun -n 4 detofa train configs/voc_detofa.json -c cudnn -d 0,1,2,3" in texts
    assert "nnabla_nas -f configs/baselines/voc_ofa_ps.json -c cudnn" in texts
    assert sum(command.place.endswith("--help") for command in COMMANDS) > 30


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_names_what_is_there(command):
    documented.check(command)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("make dmeo", "no target dmeo"),
        ("make figure5 PROFILE=demo SET=hparams.epoch=1", "hparams.epoch is not a key"),
        (".venv/bin/python -m nnabla_detofa serach runs/demo", "no command serach"),
        (".venv/bin/python -m nnabla_detofa search runs/demo --flop 90M", "--flop"),
        (".venv/bin/nnabla_nas -f configs/digit_detofa.json", "digit_detofa.json"),
        (".venv/bin/nnabla_nas -f configs/digits_detofa.json hparams.r_paht=0.5", "r_paht"),
        ("mpirun -n 4 .venv/bin/nnabla_nas -f configs/digits_detofa.json --procs 2", "--procs"),
        ("mpirun -c 4 .venv/bin/nnabla_nas", "mpirun"),
        (".venv/bin/python examples/slow_start.py", "no examples/slow_start.py"),
        ("pip install nnabla-ext-cuda120==1.38.0", "nnabla-ext-cuda120==1.38.0"),
        ("pip install nnabla-detofa[gpu]", r"nnabla-detofa\[gpu\]"),
        ("nohup make demo", "nohup"),
    ],
)
def test_a_wrong_command_is_noticed(text, message):
    with pytest.raises((documented.Fault, UserError), match=message):
        documented.check(documented.Command("a page:1", text))


def test_a_recipe_of_make_is_parsed_too():
    lines = documented.recipe(["tables", "PROFILE=bccd", "SET=dataloader.voc.root=FOLDER"])
    (line,) = (line for line in lines if "paper" in line and "--set" in line)
    assert line.endswith("--set dataloader.voc.root=FOLDER") and "table2" in line


def test_what_is_not_run_says_why_and_what_is_run_is_short():
    for command in COMMANDS:
        text, reason = docs.to_run(command)
        assert bool(text) != bool(reason)
        assert "MYDATA" not in text and "FOLDER" not in text
        if re.search(r"(nnabla_nas|detofa train) (?!.*--dry-run)", text):
            assert re.search(r"hparams.\w*epochs=1 ", text), text


def test_blocks_are_of_a_known_kind():
    for page in documented.PAGES:
        for line, language, text in documented.blocks(page):
            assert language in ("sh", "python", "text", "yaml"), f"{page}:{line}"
            if language == "python":
                names = [
                    (node.module, alias.name)
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.ImportFrom) and node.module == "nnabla_detofa"
                    for alias in node.names
                ]
                assert all(name in nnabla_detofa.__all__ for _, name in names), f"{page}:{line}"


def test_the_readme_names_every_function_and_example():
    assert all(re.search(rf"\b{name}\b", README) for name in nnabla_detofa.__all__)
    pages = README + "".join((ROOT / page).read_text(encoding="utf-8") for page in documented.PAGES)
    assert all(file.name in pages for file in (ROOT / "examples").iterdir() if file.stem != "__pycache__")


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_a_config_says_its_command(file):
    commands = documented.config_commands(file)
    assert any(re.search(rf"(-f|train) {re.escape(file)}", command.text) for command in commands)


@pytest.fixture(scope="module")
def options():
    """What the commands and the examples say of their options."""
    known = [cli._parser("detofa", place).format_help() for place, _ in cli.all_commands()]
    return "\n".join(known + [file.read_text(encoding="utf-8") for file in (ROOT / "examples").glob("*.py")])


@pytest.mark.parametrize(("page", "option"), [item for item in SPANS if item[1].startswith("--")])
def test_an_option_is_one_of_a_program(page, option, options):
    assert re.search(rf"{re.escape(option.split()[0])}\b", options)


@pytest.mark.parametrize(
    "entry", sorted({text.strip("'") for _, text in SPANS if re.match(r"'?(args|network|dataloader|hparams)\.\S+=", text)})
)
def test_an_entry_can_be_set(entry):
    """In a config of one of the kinds; docs/paper/ gives defaults, which its own test compares."""

    def accepts(file: str, more: tuple = ()) -> bool:
        try:
            configs.load(ROOT / file, [*more, entry])
        except UserError:
            return False
        return True

    kinds = ("bccd_detofa", "coco_detofa", "digits_pretrain", "baselines/digits_ofa_ps", "digits_detofa")
    more = "hparams.operation_pruning.strategy=flops"  # what r_op belongs to
    assert any(accepts(f"configs/{kind}.json") or accepts(f"configs/{kind}.json", (more,)) for kind in kinds)


def links() -> list[tuple[str, str]]:
    found = []
    for page in documented.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += [(page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return found


def anchors(file: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_somewhere(page, target):
    if "://" in target:
        assert target.startswith("https://")
        return
    name, _, anchor = target.partition("#")
    file = (ROOT / page).parent / name if name else ROOT / page
    assert file.exists()
    assert not anchor or anchor in anchors(file)


@pytest.mark.parametrize(
    ("page", "file"),
    sorted({(page, text) for page, text in SPANS if re.fullmatch(r"(configs|docs|examples|results|tests)/[\w./-]+", text)}),
)
def test_a_file_is_there(page, file):
    made = file == "results/demo/report.html"
    assert made or (ROOT / file.replace("PROFILE", "demo")).exists()


def test_the_references_and_the_tables_of_the_readme_are_up_to_date(monkeypatch):
    """`make reference` writes them."""
    monkeypatch.chdir(ROOT)
    for file, function in reference.FILES.items():
        assert (ROOT / file).read_text(encoding="utf-8") == getattr(reference, function)(), f"{file}: run make reference"
    assert reference.filled(README) == README, "README.md: run make reference"


def test_the_readme_is_short():
    assert README.count("\n") <= 180


@pytest.mark.parametrize("page", [*documented.PAGES, "docs/start/tour.ipynb"])
def test_code_fits_a_page(page):
    for first, _, text in documented.blocks(page):
        for line, code in enumerate(text.splitlines(), first):
            assert len(code) <= 88, f"{page}:{line}"


def test_the_site_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in documented.PAGES:
        assert not page.startswith("docs/") or f" {page.removeprefix('docs/')}\n" in site, page


def test_the_slurm_job_is_a_shell_script_with_a_command_that_parses():
    file = ROOT / "examples/slurm_detofa.sh"
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    text = file.read_text(encoding="utf-8").replace('"$config"', "configs/voc_detofa.json").replace("$mini_batch", "8")
    documented.check(documented.Command(file.name, re.search(r"\.venv/bin/nnabla_nas [^&]*", text)[0]))
    for name in re.findall(r"CONFIG=(\S+\.json)", text):
        assert (ROOT / name).exists()


def test_what_a_function_returns_is_one_paragraph():
    lines = reference._described("Do it.\n\nReturns:\n    A value that takes\n    two lines.\n")
    assert lines == ["Do it.", "", "**Returns**", "", "A value that takes\ntwo lines.", ""]


def test_the_page_of_the_elastic_neck_has_the_means_of_the_seeds():
    files = sorted((ROOT / "results/neck").glob("seed_*.md"))
    seeds = [re.findall(r"^\| ([\d.]+|fullnet) \| (\S+) \| (\S+) \| (\S+) \|$", file.read_text(), re.M) for file in files]
    page = (ROOT / "docs/results/neck.md").read_text()
    gaps = []
    for rows in zip(*seeds):
        (budget, *_), necks = rows[0], [float(row[2]) for row in rows]
        budget = budget if budget == "fullnet" else f"{float(budget):.3f}"
        if rows[0][1] == "-":
            cells = ["-", f"{np.mean(necks):.1f}", "-"]
        else:
            backbones = [float(row[1]) for row in rows]
            gap = np.array([float(row[3]) for row in rows])
            each = "" if not gap.any() else f" ({', '.join(f'{value:.1f}' for value in gap)})"
            cells = [f"{np.mean(backbones):.1f}", f"{np.mean(necks):.1f}", f"{gap.mean():.1f}{each}"]
            gaps += [] if budget == "fullnet" else [gap]
        assert f"| {budget} | {' | '.join(cells)} |" in page
    mean, (low, high) = (found := Values(tuple(np.mean(gaps, axis=0)))).mean, found.interval
    assert f"{-mean:.1f} points of AP50, with a 95% interval over the seeds from {-high:.1f} to {-low:.1f}" in " ".join(
        page.split()
    )
