"""The page of all results: nothing is left out, nothing is loaded, faults are named; and what a browser makes of it."""

import json
import re
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import page_in_browser
import pytest
from page_in_browser import HELP, faults, find_chromium, measure
from PIL import Image
from small import detofa_config

from nnabla_detofa.cli.program import main
from nnabla_detofa.paper import page as html_page
from nnabla_detofa.paper.page import in_order
from nnabla_detofa.tools import report

NAMES = in_order(html_page.TITLES)
WIDE = "| setting | " + " | ".join(f"column {number}" for number in range(30)) + " |\n|" + "---|" * 31 + "\n"
WIDE += "| ours | " + " | ".join(["0.123"] * 30) + " |\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in: a profile "small", its config, and two results."""
    monkeypatch.chdir(tmp_path)
    pretraining = dict.fromkeys(("config", "supernet", "path_filter", "fullnet"), "none")
    data_set = {"title": "digits", "config": "tiny.json", "pretraining": pretraining}
    Path("small.json").write_text(json.dumps({"about": ["tables & figures"], "data_sets": {"digits": data_set}}))
    Path("tiny.json").write_text(json.dumps(detofa_config("data/digits")))
    results = Path("results/small")
    results.mkdir(parents=True)
    figure("figure9")
    (results / "figure9.md").write_text(
        "# Figure 9: operations < paths & `more`\n\n## digits\n\n```\n"
        + "D0, W1 " * 40
        + "\n```\n\n"
        + WIDE
        + "\n![the curves](figure9.png)\n\n"
        "CompOFA* (1.0), CompOFA* (2.0). Runs: `a` (seed 10), `b` (seed 0), computed by version 0.1; `c` (seed 0), computed by "
        "commit a, then commit b.\n\nMade by `make figure9 PROFILE=small SEEDS=2` at commit 0123456789ab with changes.\n"
    )
    (results / "tableA2.md").write_text("# Table A2: epochs\n\nMade by `make tableA2 PROFILE=small SEEDS=1` at version 0.1.\n")
    return results


def figure(name: str) -> None:
    made, axes = plt.subplots(figsize=(12, 2))
    axes.plot([0, 1])
    made.savefig(f"results/small/{name}.png", dpi=100)
    plt.close(made)


def made(*arguments: str) -> str:
    assert main(["page", "--profile", "small.json", *arguments]) == 0
    return Path("results/small/report.html").read_text(encoding="utf-8")


def error(capsys, *arguments: str) -> str:
    assert main(["page", "--profile", "small.json", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def headings(html: str) -> list[str]:
    return [unescape(re.sub("<[^>]*>", "", title)) for title in re.findall("<h2[^>]*>(.*?)</h2>", html)]


def test_the_order_is_the_papers():
    figures = [f"figure{number}" for number in range(3, 11)]
    beside = ["controls", "architectures"]  # what the paper does not have comes last
    assert [*figures, "figureA1", "figureA2", "table1", "table2", "table3", "tableA1", "tableA2", "tableA3", *beside] == NAMES


def test_every_result_is_there_or_named_with_its_command(folder):
    """The whole list of the paper's tables and figures, none of them twice."""
    html = made()
    assert headings(html)[:2] == ["Figure 9: operations < paths & more", "Table A2: epochs"]
    missing = html.partition('<h2 id="missing">')[2].partition("</section>")[0].replace("<wbr>", "")
    commands = re.findall("<code>make (.*?)</code>", missing)
    rest = [name for name in NAMES if name not in ("figure9", "tableA2")]
    assert commands == ["table1" if name == "table1" else f"{name} PROFILE=small.json SEEDS=1" for name in rest]
    assert "detofa report" in missing and f"2 of the paper's {len(NAMES) - 2}" in html
    for name in NAMES:
        assert html.count(f'<h2 id="{name}">') == html.count(f'href="#{name}"') == (name in ("figure9", "tableA2"))


def test_table_1_the_main_run_and_second_files_of_a_target(folder):
    Path("results/table1").mkdir()
    Path("results/table1/table1.md").write_text("| space | paths |\n| --- | ---: |\n| OFA | 7 |\n")
    (folder / "table.md").write_text("| detector | AP50 |\n| --- | ---: |\n| fullnet | 0.5 |\n")
    figure("pareto")
    for name in ("table3", "table3_classification"):
        (folder / f"{name}.md").write_text("# Table 3\n\nnumbers\n")
        figure(name)
    html = made()
    figure9 = "Figure 9: operations < paths & more"
    expected = ["The run of Algorithm 1", figure9, html_page.TITLES["table1"], "Table 3", "Table 3 (classification)"]
    assert headings(html)[:5] == expected
    assert html.count("<img ") == 4 and 'alt="pareto"' in html and 'alt="table3_classification"' in html
    assert '<td style="text-align:right">7</td>' in html and html.count('class="wide"') == 4, "all are 1200 pixels wide"


def test_verdicts_come_first(folder, capsys):
    """From claims.json, in which a claim has no number, one, or several."""
    text = html_page.CLAIMS[0].text
    number = {"claim": f"{text}: A minus B", "paper": "0.85", "values": [1.0, 2.0], "mean": 1.5, "interval": [-4.85, 7.85]}
    number |= {"verdict": "not decidable", "unit": "points of AP"}
    single = number | {"claim": "older words: A < C", "mean": 3.0, "interval": None}
    content = {f"C{place}": [] for place in range(1, 9)} | {"C1": number, "C2": [number, single]}
    (folder / "claims.json").write_text(json.dumps(content))
    figure("C1")
    html = made()
    assert headings(html)[0] == "Verdicts on the paper's claims"
    verdicts = html.partition('<h2 id="verdicts">')[2].partition("</section>")[0]
    decided = f"<td>{text}</td><td>A minus B</td><td>+1.50 [-4.85, +7.85] points of AP</td><td>0.85</td>"
    assert f"<td>C1</td><td><strong>not decidable</strong></td>{decided}" in verdicts
    assert "<td>older words: A &lt; C</td><td>+3.00 (single seed) points of AP</td><td>0.85</td>" in verdicts
    assert html.index('<h2 id="verdicts">') < html.index("<nav"), "nothing has to be scrolled away"
    assert verdicts.count("<td>not measured yet</td>") == 6 and verdicts.count("<img ") == 1
    for damaged in ({"C1": []}, content | {"C3": [{}]}, []):
        (folder / "claims.json").write_text(json.dumps(damaged))
        assert "claims.json is damaged" in error(capsys)


def test_detections_are_shown_whole_and_plots_scroll(folder):
    (folder / "table.md").write_text("| detector | AP50 |\n| --- | ---: |\n| fullnet | 0.5 |\n")
    for name in ("pareto", "detections"):
        figure(name)
    classes = dict(re.findall(r'<img src="[^"]*"( class="wide")? alt="(pareto|detections)">', made()))
    assert classes == {' class="wide"': "pareto", "": "detections"}


def test_nothing_is_loaded_and_text_stays_text(folder):
    (folder / "tableA1.md").write_text(
        "# <script>alert(1)</script>\n\n<img src=x onerror=alert(1)> | <b>\n\n[link](javascript:alert(1))\n"
    )
    html = made()
    assert "<script" not in html and "<b>" not in html and 'href="javascript' not in html
    assert headings(html)[1] == "<script>alert(1)</script>"
    assert "CompOFA* (1.0), CompOFA* (2.0)." in html and "tables &amp; figures" in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'\bsrc="([^"]*)"', html))
    assert all(target.startswith("#") for target in re.findall(r'\bhref="([^"]*)"', html))
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html


def test_names_of_classes_stay_names(folder):
    """Whatever a data set calls them: none is a column, emphasis or a picture."""
    names = ["car|van", "_b_", "![x](y)", "<script>", "a\\b", "`c`"]
    result = {"ap50_per_class": dict.fromkeys(names, 0.5)}
    summary = {"fullnet": result, "subnets": [], "seconds": {}}
    (folder / "table.md").write_text(report.markdown(report.COLUMNS, [("fullnet",) * 6], summary))
    cells = re.findall("<th[^>]*>(.*?)</th>", made().partition("AP50 per class")[2].partition("</thead>")[0])
    assert [unescape(cell) for cell in cells] == ["detector", *names]


def test_seeds_code_and_command_are_those_of_the_files(folder):
    origins = made().partition('<h2 id="origins">')[2].replace("<wbr>", "")
    computed = "<td>version 0.1; commit a, then commit b</td>"
    row = (
        f"<td>0, 10</td>{computed}<td>commit 0123456789ab with changes</td><td><code>make figure9 PROFILE=small SEEDS=2</code>"
    )
    (folder / "tableA3.md").write_text("Run: `r` (seed 0). The filter is fitted with 3 seeds (0, 1, 2): the mean.\n")
    assert "<td>0; of the filter: 0, 1, 2</td>" in made()
    assert row in origins and "<td>-</td><td>-</td><td>version 0.1</td>" in origins
    (folder / "tableA2.md").write_text("no origin\n")
    assert "<td>not recorded</td>" in made()


def test_settings_are_what_differs_from_the_defaults(folder):
    def rows(html: str) -> dict[str, list[str]]:
        body = html.partition('<h2 id="settings">')[2].partition("</section>")[0].replace("<wbr>", "")
        found = re.findall("<tr><td><code>(.*?)</code></td><td><code>(.*?)</code></td><td><code>(.*?)</code></td>", body)
        return {key: [unescape(value) for value in values] for key, *values in found}

    html = made()
    found = rows(html)
    assert found["hparams.epochs"] == ["2", "65"] and found["hparams.filter.dim"] == ["16", "128"]
    assert found["dataloader.voc.flip"] == ["false", "true"] and found["dataloader.voc.val"] == ['["val"]', "[]"]
    assert "args.seed" not in found and "current tiny.json" in html.replace("<wbr>", "")
    (folder / "config.json").write_text(json.dumps(detofa_config("elsewhere") | {"args": {"seed": 5}}))
    html = made()
    (folder / "table.md").write_text("The run was computed by commit a.\n\nMade by `detofa report r -o s` at commit b.\n")
    assert "<td>5</td><td>commit a</td><td>commit b</td>" in made()
    assert rows(html)["args.seed"] == ["5", "0"] and rows(html)["dataloader.voc.root"][0] == '"elsewhere"'
    assert "current tiny.json" not in html


def test_the_same_files_give_the_same_bytes(folder):
    first = made()
    assert first == made() and made("-o", "elsewhere.html") == Path("elsewhere.html").read_text(encoding="utf-8") == first


def test_faults_are_one_sentence(folder, capsys):
    assert "got nowhere.json" in error(capsys, "--profile", "nowhere.json")
    text = error(capsys, "--results", "results/none")
    assert "no results in results/none" in text and text.endswith(
        "run: detofa paper tableA1 --profile small.json --seeds 1 -o results/none\n"
    )
    assert "--output must be a file" in error(capsys, "-o", "none/report.html")
    before = (folder / "figure9.md").read_text()
    assert "name ends in .html, got results/small/figure9.md" in error(capsys, "-o", "results/small/figure9.md")
    assert (folder / "figure9.md").read_text() == before
    (folder / "figure9.png").write_bytes(b"GIF89a")
    assert "figure9.png is damaged: it is not a complete PNG file" in error(capsys)
    Image.new("1", (14000, 14000)).save(folder / "figure9.png")  # more pixels than a picture may have
    assert "figure9.png is damaged: it is not a complete PNG file" in error(capsys)
    figure("figure9")
    (folder / "figure9.png").write_bytes((folder / "figure9.png").read_bytes()[:-100])
    assert "figure9.png is damaged: it is not a complete PNG file" in error(capsys)
    (folder / "figure9.png").unlink()
    assert "figure9.md shows figure9.png, but results/small/figure9.png is missing" in error(capsys)
    (folder / "figure9.md").write_bytes(b"\xff\xfe\x00")
    assert "figure9.md is damaged: it is not UTF-8 text" in error(capsys)
    (folder / "figure9.md").write_text("\n")
    assert "figure9.md is damaged: it is empty" in error(capsys)


@pytest.mark.thorough
def test_long_pages_have_several_screenshots(folder, chromium, monkeypatch):
    made()
    monkeypatch.setattr(page_in_browser, "MAX_PIXELS", 1500)
    layout = measure(chromium, folder / "report.html", 360, Path("page.png"))
    names = [file.name for file in layout.screenshots]
    assert names[:2] == ["page.png", "page-2.png"] and len(names) == -(-layout.height // 1500)
    sizes = [Image.open(file).size for file in layout.screenshots]
    assert sum(height for _, height in sizes) == layout.height and {width for width, _ in sizes} == {360}


def test_a_browser_that_does_not_end_is_an_error(folder, monkeypatch, capsys):
    made()
    Path("browser").write_text("#!/bin/sh\nsleep 60\n")
    Path("browser").chmod(0o755)
    monkeypatch.setenv("CHROMIUM", "./browser")
    monkeypatch.setattr(page_in_browser, "MAX_SECONDS", 0.2)
    assert page_in_browser.main([str(folder / "report.html")]) == 2
    assert "did not end within 0.2 seconds" in capsys.readouterr().err


def test_without_a_browser_the_command_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert find_chromium() is None and page_in_browser.main(["page.html"]) == 2
    assert capsys.readouterr().err == f"error: {HELP}\n"


@pytest.fixture
def chromium():
    found = find_chromium()
    if found is None:
        pytest.skip(HELP)
    return found


def test_a_browser_lays_it_out_at_the_width_of_a_phone(folder, chromium):
    html = made()
    layout = measure(chromium, folder / "report.html", 360, Path("page.png"))
    assert faults(layout, html) == []
    assert (layout.width, layout.content_width, layout.images) == (360, 360, (1200,)) and layout.scrolling >= 2
    assert "Figure 9: operations < paths & more" in layout.text and Path("page.png").stat().st_size > 5000


def test_what_is_wrong_in_a_browser_is_found(folder, chromium):
    """The table out of its box, a picture cut short, a script and a heading that nobody sees."""
    html = made().replace('<div class="table" tabindex="0">', "<div>")
    html = re.sub('src="data:image/png;base64,[^"]{20}', 'src="data:image/png;base64,', html)
    html = html.replace("<h1>", "<script></script><h1 hidden>")
    Path("broken.html").write_text(html, encoding="utf-8")
    found = faults(measure(chromium, Path("broken.html"), 360, Path("page.png")), html)
    assert len(found) == 4 and "TABLE." in found[0] and found[1] == "picture 1 did not load"
    assert found[2].startswith("it has 1 scripts") and "DetOFA reproduction: results on digits" in found[3]
