"""The report: what it says of runs, stores and sweeps, its size, what it refuses, and that it is a page without faults."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from html import unescape

import commands
import numpy as np
import pytest
import train_data
from browser import opened, wait_until

import excl
from excl.pipeline import pack
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.training_store import TrainingStore
from excl.workflows.cli import main
from excl.workflows.demo import DemoConfig, plan_video, write_video
from excl.workflows.pages.charts import IntervalRow, density, intervals

HOSTILE = "</script><script>document.title=1</script><img src=x onerror=document.title=1> jumps"
FILE = "<b>a&'\".mp4"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run trained on a store whose sentences are hostile, one video of which failed, and the run's report."""
    folder = tmp_path_factory.mktemp("made")
    store = train_data.make_store(folder / "data", verb=HOSTILE, num_videos=24)
    assert main(train_data.arguments(store, folder / "run", "--seed", "1")) == 0
    assert main(["report", str(folder / "run"), "--out", str(folder / "page.html"), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "page.html").read_text(encoding="utf-8")


def tables(html):
    """The data of all figures by title: lists of rows as dictionaries."""
    found = re.findall(r'<pre tabindex="0" aria-label="CSV of (.*?)">(.*?)</pre>', html, re.DOTALL)
    return {unescape(title): list(csv.DictReader(io.StringIO(unescape(text)))) for title, text in found}


def test_the_page_has_all_sections_and_is_one_small_file(page):
    titles = [unescape(title) for title in re.findall(r'<h2 id="title\d+">(.*?)</h2>', page)]
    assert titles == [
        "Results", "Recipe", "Training", "Where it is right", "Where moments are, and where the answers are", "Examples",
        "Data", "Features",
    ]  # fmt: skip
    assert len(page) < 3e6
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "RANDOM weights" in page


def test_results_are_those_of_the_evaluation(made, page):
    metrics = json.loads((made / "run-evaluation-test" / "metrics.json").read_text())
    for threshold in (0.3, 0.5, 0.7):
        rows = {row["name"]: row for row in tables(page)[f"R@1 at IoU {threshold}"]}
        figures = metrics["model"]["all"]
        low, high = figures["interval_95"][f"R1@{threshold}"]
        shown = [float(rows[metrics["variant"]][key]) for key in ("value", "from", "to")]
        assert shown == pytest.approx([figures[f"R1@{threshold}"], low, high], abs=1e-3)
        assert float(rows["time prior"]["value"]) == pytest.approx(metrics["time_prior"]["all"][f"R1@{threshold}"], abs=1e-3)


def iou(first, second):
    shared = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


def answered(made):
    """Every test query with its best window's IoU and p, by a reading of its own."""
    lines = (made / "run-evaluation-test" / "predictions.jsonl").read_text().splitlines()
    windows = {line["qid"]: line["pred_relevant_windows"][0] for line in map(json.loads, lines)}
    queries = TrainingStore(made / "data" / "store").queries("test")
    return [(q, iou(windows[q.annotation_id][:2], (q.start_s, q.end_s)), windows[q.annotation_id][2]) for q in queries]


def test_recall_by_length_counts_every_query_once(made, page):
    rows = tables(page)["By the moment's length"]
    pairs = sorted((q.end_s - q.start_s, fit >= 0.5) for q, fit, _ in answered(made))
    assert sum(int(row["queries"]) for row in rows) == len(pairs)
    for row in rows:
        part, pairs = pairs[: int(row["queries"])], pairs[int(row["queries"]) :]
        assert row["name"] == f"{part[0][0]:.1f} to {part[-1][0]:.1f} s"
        assert float(row["value"]) == pytest.approx(100 * np.mean([right for _, right in part]), abs=1e-3)


def test_calibration_says_how_often_answers_of_a_probability_are_right(made, page):
    pairs = sorted((p, fit >= 0.5) for _, fit, p in answered(made))
    points = [float(row["value"]) for row in tables(page)["Calibration"]]
    means = [float(row["p of the answer, mean of a tenth of the queries"]) for row in tables(page)["Calibration"]]
    assert len(points) == min(10, len(pairs))
    assert means == sorted(means)
    parts = np.array_split(np.array([right for _, right in pairs], dtype=float), len(points))
    shares = np.average(points, weights=[len(part) for part in parts])
    assert shares == pytest.approx(np.mean([right for _, right in pairs]))


def test_axes_of_percent_reach_100_or_a_round_number():
    tops = {0.0: "100", 3.0: "10", 10.0: "10", 15.0: "20", 33.3: "100", 100.0: "100"}
    for value, top in tops.items():
        drawing = intervals("t", [IntervalRow("a", value)], caption="c").svg
        assert re.findall(r">([\d.]+)</text>", drawing)[-1] == top, value


def test_the_axis_of_ends_is_named_beside_it():
    drawing = density("t", np.array([[0.1, 0.4]]), caption="c").svg
    [(x, turned)] = re.findall(r'<text x="([\d.]+)" [^>]*(rotate\(-90[^)]*\))"[^>]*>end, as a part of the video<', drawing)
    assert float(x) < 30
    assert turned


def examples(html):
    """The kind, the query and the IoU of every example."""
    notes = re.findall(r'"note":"IoU of the first answer ([\d.]+)"', html)
    titles = re.findall(r'<article class="example"><h3>(.*?): (.*?)</h3>', html, re.DOTALL)
    return [(kind, unescape(name), float(note)) for (kind, name), note in zip(titles, notes, strict=True)]


def test_each_query_is_one_example_of_what_it_is_called(made, page):
    found = examples(page)
    assert len({name for _, name, _ in found}) == len(found) > 3
    answers = {f"{q.query} ({q.video_id})": (fit, p) for q, fit, p in answered(made)}
    middle = np.median([p for _, p in answers.values()])
    for kind, name, noted in found:
        fit, p = answers[name]
        assert noted == pytest.approx(fit, abs=0.006)
        assert kind in ("Among the best", "Sure and wrong", "At random")
        assert fit >= 0.5 or kind != "Among the best"
        assert (fit < 0.5 and p >= middle) or kind != "Sure and wrong"
    fits = sorted((fit for fit, _ in answers.values() if fit >= 0.5), reverse=True)
    assert [noted for kind, _, noted in found if kind == "Among the best"] == pytest.approx(fits[:3], abs=0.006)


def test_below_five_videos_there_is_no_interval(tmp_path, capsys):
    """Three videos in the test split: figures alone, in the terminal and on the page, which both say why."""
    store = train_data.make_store(tmp_path / "data", num_videos=14)
    assert main(train_data.arguments(store, tmp_path / "run", "--seed", "1")) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "95 %" not in printed
    assert printed.count("There is no interval below 5 videos.") == 1
    assert "docs/baselines.md says what" in printed
    assert main(["report", str(tmp_path / "run"), "--device", "cpu"]) == 0
    html = (tmp_path / "run-report.html").read_text(encoding="utf-8")
    assert html.count("There is no interval below 5 videos.") == 1
    shown = tables(html)
    assert "R@1 at IoU 0.5" in shown
    for title, rows in shown.items():
        if title.startswith(("R@1 at", "By ")):
            assert {(row["from"], row["to"]) for row in rows} == {("", "")}, title
    assert all(re.fullmatch(r"-|[\d.]+", row["R1@0.5"]) for row in shown["Figures in percent"])


def test_baselines_are_explained_below_their_figures(page):
    below = re.findall(r'<p class="below">(.*?)</p>', page)
    approaches = {row["approach"].partition(" (")[0] for row in tables(page)["Figures in percent"]}
    names = {name for name in approaches if not name.startswith("ExCL")}
    assert {line.partition(" knows ")[0] for line in below[:-1]} == names
    assert len(names) == 6
    assert "has not learnt to find moments by looking" in below[-1]


def test_tables_fit_a_narrow_page_or_show_that_they_go_on(browser, made):
    with opened(browser, made / "page.html", viewport={"width": 400, "height": 800}) as page:
        for title in ("Training", "What made the features"):
            table = page.get_by_role("region", name=f"Table: {title}")
            assert table.evaluate("box => box.scrollWidth <= box.clientWidth"), title
            for cell in table.locator("tr:nth-child(2) > *").all():
                assert cell.bounding_box()["x"] + cell.bounding_box()["width"] <= 400
        table = page.get_by_role("region", name="Table: Figures in percent")
        sides = "box => ['::before', '::after'].map((side) => getComputedStyle(box.parentElement, side).opacity)"
        assert table.evaluate("box => box.scrollWidth > box.clientWidth")
        assert table.evaluate(sides) == ["0", "1"]
        table.focus()
        page.keyboard.press("ArrowRight")
        frame = """document.querySelector('[aria-label="Table: Figures in percent"]').parentElement.classList"""
        wait_until(page, f"{frame}.contains('more-left')")
        table.evaluate("box => { box.scrollLeft = box.scrollWidth }")
        wait_until(page, f"!{frame}.contains('more-right')")
        assert table.evaluate(sides) == ["1", "0"]


def test_curves_and_data_are_those_of_the_files(made, page):
    lines = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["value"]) for row in tables(page)["Loss on the training split"]] == [ln["train_loss"] for ln in lines]
    store = TrainingStore(made / "data" / "store")
    per_video = Counter(q.video_id for split in ("train", "val", "test") for q in store.queries(split))
    rows = tables(page)["Moments of a video"]
    counted = {round((float(r["moments, from"]) + float(r["to"])) / 2): int(r["number"]) for r in rows if int(r["number"])}
    assert counted == Counter(per_video.values())
    assert sum(int(row["number"]) for row in tables(page)["Rows of a video"]) == len(store)


def test_hostile_texts_are_shown_and_do_nothing(browser, made):
    with opened(browser, made / "page.html", viewport={"width": 400, "height": 800}) as page:
        assert page.title() == f"excl: {made.name}/run"
        assert HOSTILE.split(" jumps", maxsplit=1)[0] in page.locator("article h3").first.text_content()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_text("Data of “Calibration”").click()
        page.locator("details[open] button.copy").click()
        wait_until(page, "/Copied|Selected/.test(document.querySelector('details[open] button.copy').textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, made, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(browser, made / "page.html", color_scheme=scheme, bypass_csp=True) as page:
        faults = axe.Axe().run(page).response["violations"]
        assert [json.dumps(f)[:300] for f in faults if f["impact"] in ("serious", "critical")] == []


def test_a_store_has_a_report_with_what_failed(made, tmp_path):
    source = {"file": FILE, "bytes": 3, "sha256": "?"}
    with Manifest.open(made / "data" / "features", stage="extract", identity=train_data.RECIPE, code_version=1) as manifest:
        manifest.add({"id": "video/bad", "source": source, "error": "unreadable", "message": f"{FILE}: <i>no</i> video"})
    folders = {"features": made / "data" / "features", "queries": made / "data" / "queries"}
    pack.run(pack.PackConfig(**folders, out=made / "data" / "again"))
    for store in ("features", "again"):
        assert main(["report", str(made / "data" / store), "--out", str(tmp_path / f"{store}.html")]) == 0
        html = (tmp_path / f"{store}.html").read_text(encoding="utf-8")
        assert FILE not in html
        [row] = tables(html)["Videos that failed"]
        assert row == {"reason": "unreadable", "videos": "1", "files": FILE,
                       "the first one's message": f"{FILE}: <i>no</i> video"}  # fmt: skip
        assert sum(int(row["number"]) for row in tables(html)["Durations of videos"]) == 24


def test_a_run_without_its_store_has_a_report_that_says_what_is_missing(made, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in (made / "run").iterdir():
        if path.is_file() and path.name != "stores.json":
            (run / path.name).write_bytes(path.read_bytes())
    assert main(["report", str(run)]) == 0
    html = (tmp_path / "run-report.html").read_text(encoding="utf-8")
    assert "What is missing here" in html
    assert "has not been evaluated" in html
    assert "Loss on the training split" in tables(html)


def test_a_sweep_has_a_report_of_its_variants(made, tmp_path):
    sweep = tmp_path / "sweep"
    arguments = [str(made / "data" / "store"), "--out", str(sweep), "--variants", "clf-1-a", "reg-1-a", "--seeds", "1"]
    assert main(["reproduce", *arguments, *train_data.SMALL, "--epochs", "1", "--device", "cpu"]) == 0
    assert main(["report", str(sweep)]) == 0
    rows = {row["name"]: row for row in tables((tmp_path / "sweep-report.html").read_text())["R@1 at IoU 0.5"]}
    assert [*rows] == ["ExCL-clf 1-a", "ExCL-reg 1-a"]
    for variant, row in zip(("clf-1-a", "reg-1-a"), rows.values(), strict=True):
        [path] = sweep.glob(f"*/{variant}/seed-0/evaluation/metrics.json")
        assert float(row["value"]) == pytest.approx(json.loads(path.read_text())["model"]["all"]["R1@0.5"], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data/queries"], "a folder of the stage 'tokenise'"),
        (["data"], "no manifest.json there"),
        (["run", "--videos", "nowhere"], "nowhere is not a folder"),
        (["run", "--embed-videos", "2"], "needs --videos"),
        (["run", "--evaluation", "data/store"], "data/store"),
    ],
)
def test_what_is_no_run_or_store_is_refused_in_a_sentence(made, arguments, message):
    command = [sys.executable, "-m", "excl.workflows.cli", "report", *arguments, "--out", "never.html"]
    result = commands.run(command, cwd=made, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert not (made / "never.html").exists()


def test_a_video_of_a_store_is_shown_with_answers_and_moments(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in (["--store", str(made / "data" / "store")], ["--run", str(made / "run"), "--device", "cpu"]):
        assert main(["show", "v03", *more, "--out", "v.html"]) == 0
        html = (tmp_path / "v.html").read_text(encoding="utf-8")
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
        queries = [q for q in TrainingStore(made / "data" / "store").queries("test") if q.video_id == "v03"]
        assert [q["text"] for q in data["queries"]] == [q.query for q in sorted(queries, key=lambda q: q.start_s)]
        assert [(m["start_s"], m["end_s"]) for q in data["queries"] for m in q["moments"]] == sorted(
            (q.start_s, q.end_s) for q in queries
        )
        for query in data["queries"] if "--run" in more else ():
            assert sum(query["start_probability"]) == pytest.approx(1, abs=1e-4)
            assert sum(query["end_probability"]) == pytest.approx(1, abs=1e-4)
            assert query["predictions"][0]["score"] >= query["predictions"][-1]["score"]
            assert len(query["start_probability"]) == len(data["rows"]["start_s"])


def test_a_video_file_of_the_store_brings_its_queries(made, tmp_path, monkeypatch):
    """By its name or its path; another file of that name, or one that the store has not, is refused."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "v03.mp4", plan_video(0, DemoConfig(out=tmp_path, min_seconds=12, max_seconds=12)))
    (tmp_path / "other.mp4").write_bytes((tmp_path / "v03.mp4").read_bytes())
    about = [q.query for q in TrainingStore(made / "data" / "store").queries("test") if q.video_id == "v03"]
    for file in ("v03.mp4", str(tmp_path / "v03.mp4")):
        assert main(["show", file, "--run", str(made / "run"), "--device", "cpu", "--out", "v.html"]) == 0
        html = (tmp_path / "v.html").read_text(encoding="utf-8")
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
        assert sorted(q["text"] for q in data["queries"]) == sorted(about)
        assert all(q["moments"] and q["predictions"] for q in data["queries"])
        assert data["video"] == "./v03.mp4"
        assert f"Answers of the run {made.name}/run" in html
    with pytest.raises(ValueError, match=r"other.mp4: not a video of .* needs --run and at least one --query"):
        excl.show(excl.load_run(made / "run", device="cpu"), tmp_path / "other.mp4", device="cpu")


def test_python_returns_pages_that_notebooks_show(made):
    run = excl.load_run(made / "run", device="cpu")
    shown = excl.show(run, "v03", "the cat jumps", device="cpu")
    assert "the cat jumps" in shown.html
    strange = excl.show(run, "v03", ["the cat", "the zebra the cat"], device="cpu").html
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', strange)[1])
    assert [(q["unseen_words"], q["unknown_words"]) for q in data["queries"]] == [([], []), (["zebra"], ["zebra"])]
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    assert HOSTILE.split(" jumps", maxsplit=1)[0] not in shown._repr_html_()
    assert "What is annotated" in excl.show(excl.open_store(made / "data" / "store"), "v03").html
    page = excl.report(run, device="cpu")
    assert page.save(made / "again.html").read_text(encoding="utf-8") == page.html
    with pytest.raises(ValueError, match="neither a file nor a video"):
        excl.show(run, "v99")
