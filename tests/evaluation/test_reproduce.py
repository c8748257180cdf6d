"""The sweep over the paper's variants: its table against the evaluations, its resume, its processes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import commands
import psutil
import pytest
from chain_data import KILLED_RUN, MODEL, make, pack
from exchange_data import packed as packed_as

from excl.models.excl import PAPER_BASELINES, VARIANTS, ExCLConfig, paper_r1, variant_config, variant_label
from excl.pipeline import train
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.sweep import jobs, reproduce
from excl.pipeline.sweep.jobs import JOB_COMMAND
from excl.pipeline.sweep.table import read_results
from excl.pipeline.training import trainer
from excl.workflows.cli import main
from excl.workflows.runner.recipe import parse

TINY = [*MODEL, "--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return pack(make(tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("packed")) / "store"


def arguments(store, out, *more, seeds=2):
    variants = ["--variants", "reg-1-a", "clf-1-a", "--seeds", str(seeds)]
    return ["reproduce", str(store), "--out", str(out), *variants, *TINY, *more]


@pytest.fixture(scope="module")
def swept(store, tmp_path_factory):
    """Two variants, twice each."""
    out = tmp_path_factory.mktemp("sweep") / "table"
    assert main(arguments(store, out)) == 0
    return out


@pytest.fixture
def forked_jobs(monkeypatch):
    """Trainings side by side are forked from a process that has imported what they need; a list of those processes."""
    processes = []

    def start(command, **how):
        processes.append(commands.start(command, **how))
        return processes[-1]

    monkeypatch.setattr(jobs, "subprocess", types.SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    return processes


def evaluations(out):
    """The metrics of every evaluation by variant and seed."""
    found = {}
    for path in out.glob("*/*/seed-*/evaluation/metrics.json"):
        variant, seed = path.parents[2].name, path.parents[1].name
        found[variant, int(seed.removeprefix("seed-"))] = json.loads(path.read_text())
    return found


def rows_of(out):
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "log.txt")}


def test_the_table_holds_means_and_deviations_of_the_evaluations(swept):
    made = evaluations(swept)
    assert set(made) == {(variant, seed) for variant in ("clf-1-a", "reg-1-a") for seed in (0, 1)}
    assert made["clf-1-a", 0]["model"] != made["clf-1-a", 1]["model"], "the seeds differ"
    rows = {(row["method"], row["queries"], row["figure"]): row for row in rows_of(swept)}
    for variant, label in (("clf-1-a", "ExCL-clf 1-a"), ("reg-1-a", "ExCL-reg 1-a")):
        for method, key in ((label, "model"), (f"query-blind {label}", "query_blind")):
            for group in ("all", "cat", "dog"):
                scores = [made[variant, seed][key] for seed in (0, 1)]
                figures = [one["all"] if group == "all" else one["groups"][group] for one in scores]
                for name in ("R1@0.3", "R5@0.7", "R1@0.5 strict", "mIoU"):
                    row, values = rows[method, group, name], [one[name] for one in figures]
                    assert float(row["mean"]) == pytest.approx(sum(values) / 2)
                    assert float(row["std"]) == pytest.approx(statistics.stdev(values))
                    assert (row["seeds"], row["paper"], row["difference"]) == ("2", "", "")
    found = made["clf-1-a", 0]
    assert float(rows["time prior", "dog", "mIoU"]["mean"]) == found["time_prior"]["groups"]["dog"]["mIoU"]
    assert rows["best fixed span", "all", "R1@0.5"]["std"] == ""
    [about] = json.loads((swept / "table.json").read_text()).values()
    assert len(about["lines"]) == len(rows)
    assert (about["num_queries"], about["num_covered"]) == (12, 10)


def test_the_table_for_people(store, swept, capsys):
    assert main(arguments(store, swept)) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if "±" in line) <= 80
    text = (swept / "table.md").read_text()
    rows = {(row["method"], row["queries"], row["figure"]): row for row in rows_of(swept)}
    [line] = [line for line in text.splitlines() if line.startswith("| ExCL-reg 1-a ") and "| 2 " in line]
    wanted = [rows["ExCL-reg 1-a", "all", name] for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")]
    wanted.append(rows["query-blind ExCL-reg 1-a", "all", "R1@0.5"])
    cells = [f"{float(row['mean']):.1f} ± {float(row['std']):.1f}" for row in wanted]
    [about] = json.loads((swept / "table.json").read_text()).values()
    worse = {one["figure"] for one in about["differences"] if one["stands"]}  # of two methods one is the best
    better = max(("clf", "reg"), key=lambda loss: float(rows[f"ExCL-{loss} 1-a", "all", "R1@0.3"]["mean"]))
    figures = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "")
    marked = [f"{cell}*" if better == "clf" and name in worse else cell for cell, name in zip(cells, figures, strict=True)]
    shown_line = [cell.strip().replace(" \\*", "*") for cell in line.strip("|").split("|")]
    best_epochs = sorted({run["best_epoch"] for run in about["epochs"]["ExCL-reg 1-a"]})
    assert shown_line == ["ExCL-reg 1-a", "2", f"2 ({' to '.join(map(str, best_epochs))})", *marked]
    assert "".join(["ExCL-reg 1-a, 2 seeds".ljust(27), *(cell.rjust(13) for cell in marked[:4])]) in shown.splitlines()
    assert "  query-blind" in shown
    assert "RANDOM weights" in shown
    assert "cat (6), IoU 0.3" in text
    assert "RANDOM weights" in text
    assert "12 queries (test.jsonl), of which 10 have features" in text
    assert "R1@0.5, then mIoU on the validation split (val.jsonl)" in text
    assert "paper" not in text


def test_the_differences_are_those_of_significance(swept, capsys):
    """The command on the variants' folders, which finds evaluations, store and seeds itself."""
    variants = [str(next(swept.glob(f"*/{name}"))) for name in ("clf-1-a", "reg-1-a")]
    assert main(["significance", *variants, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    [about] = json.loads((swept / "table.json").read_text()).values()
    assert [list(one.values())[2:] for one in result["differences"]] == [
        list(one.values())[2:] for one in about["differences"]
    ]
    assert result["methods"]["clf-1-a"]["seeds"] == 2
    made = evaluations(swept)
    means = {
        variant: sum(made[variant, seed]["model"]["all"]["mIoU"] for seed in (0, 1)) / 2
        for variant in ("clf-1-a", "reg-1-a")
    }
    assert result["differences"][3]["difference"] == pytest.approx(means["clf-1-a"] - means["reg-1-a"])
    run = str(next(swept.glob("*/clf-1-a/seed-0/run")))
    assert main(["significance", run, variants[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["run"]["mIoU"] == made["clf-1-a", 0]["model"]["all"]["mIoU"]
    assert main(["significance", run, variants[1], "--split", "val"]) == 2


def test_the_seeds_of_a_method_are_its_evaluations_on_the_split(swept, tmp_path, capsys, caplog):
    """Another split's evaluation beside them is left out; two variants are no method."""
    folder = shutil.copytree(next(swept.glob("*/clf-1-a")), tmp_path / "clf")
    other = str(next(swept.glob("*/reg-1-a")))
    assert main(["evaluate", str(folder / "seed-0" / "run"), "--split", "val", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["significance", str(folder), other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["clf"]["seeds"] == 2
    assert main(["significance", str(next(swept.glob("*/clf-1-a")).parent), other]) == 2
    assert "expected trainings of one method" in caplog.text


def test_a_training_that_hit_its_bound_is_named_and_one_that_converged_is_not(store, swept, tmp_path, capsys):
    """The bound of 2 epochs is less than the patience; with a patience of 1 both stop by themselves, long before 300."""
    text = (swept / "table.md").read_text()
    [named] = [line for line in text.splitlines() if line.startswith("**Not converged**, with 2 epochs as the bound")]
    assert all(f"ExCL-{loss} 1-a seed {seed} (best epoch" in named for loss in ("clf", "reg") for seed in (0, 1))
    out = tmp_path / "table"
    short = [argument for argument in TINY if argument not in ("--epochs", "2")]
    arguments = ["reproduce", str(store), "--out", str(out), "--variants", "clf-1-a", "--seeds", "1", *short]
    assert main([*arguments, "--patience", "1"]) == 0
    shown = capsys.readouterr().out
    text = (out / "table.md").read_text()
    assert "onverged" not in text + shown
    [about] = json.loads((out / "table.json").read_text()).values()
    [run] = about["epochs"]["ExCL-clf 1-a"]
    history = [json.loads(line) for line in next(out.glob("*/clf-1-a/seed-0/run/metrics.jsonl")).read_text().splitlines()]
    assert run == {"seed": 0, "epochs": len(history), "best_epoch": len(history) - 1, "converged": True}
    assert "Which differences are real is not known" in text


def test_a_sweep_that_is_done_is_left_alone(store, swept, monkeypatch):
    before = state(swept)
    monkeypatch.setattr(trainer, "Trainer", lambda *_: pytest.fail("trained again"))
    assert main(arguments(store, swept)) == 0
    tables = {swept / name for name in ("table.md", "table.csv", "table.json", "protocol.json")}
    assert {p: t for p, t in state(swept).items() if p not in tables} == {p: t for p, t in before.items() if p not in tables}


def test_another_seed_adds_to_what_is_there(store, tmp_path):
    out = tmp_path / "table"
    first = ["reproduce", str(store), "--out", str(out), "--variants", "clf-1-a", *TINY, "--seeds"]
    assert main([*first, "1"]) == 0
    before = state(next(out.glob("*/clf-1-a/seed-0")))
    assert {row["std"] for row in rows_of(out)} == {""}
    assert main([*first, "2"]) == 0
    assert state(next(out.glob("*/clf-1-a/seed-0"))) == before
    assert {row["seeds"] for row in rows_of(out) if row["method"] == "ExCL-clf 1-a"} == {"2"}


def test_other_settings_in_the_same_folder_are_refused(store, swept, caplog):
    at = arguments(store, swept)
    at[at.index("--epochs") + 1] = "3"
    assert main(at) == 2
    assert "identity.epochs: the folder has 2, asked for is 3" in caplog.text


def test_other_settings_are_refused_before_anything_is_trained(store, swept, caplog):
    """A table of two settings would come of the variants that are not there yet."""
    before = state(swept)
    for settings, said in (
        (("--epochs", "1"), "reg-1-a/seed-0/run: identity.epochs: the folder has 2, asked for is 1"),
        (("--split", "val"), "reg-1-a/seed-0/evaluation: identity.split: the folder has 'test', asked for is 'val'"),
    ):
        flags = ["--variants", "clf-1-b", "reg-1-a", "--seeds", "1", *TINY, *settings]
        assert main(["reproduce", str(store), "--out", str(swept), *flags]) == 2
        assert said in caplog.text
        assert not [*swept.glob("*/clf-1-b")]
        assert state(swept) == before


def test_an_evaluation_of_another_training_is_not_in_the_table(swept, tmp_path):
    shutil.copytree(swept, tmp_path / "table")
    folders = sorted((tmp_path / "table").glob("*/clf-1-a/seed-*/evaluation"))
    assert len(read_results(folders)[folders[0].parents[2].name]) == 2
    shutil.rmtree(folders[0].parent / "run")
    shutil.copytree(folders[1].parent / "run", folders[0].parent / "run")
    [found] = read_results(folders)[folders[0].parents[2].name]
    assert found["training"]["seed"] == 1


def test_a_killed_sweep_goes_on_and_ends_the_same(store, swept, tmp_path):
    """28 queries are 4 steps an epoch and 8 a training: killed in the first, in the second, and in the third."""
    out = tmp_path / "table"
    first = None
    for steps in (3, 7, 15):
        command = [sys.executable, "-c", KILLED_RUN, *arguments(store, out)]
        process = commands.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if steps == 15:
            first = state(next(out.glob("*/clf-1-a/seed-0")))
            assert len(evaluations(out)) < 4
    assert main(arguments(store, out)) == 0
    assert state(next(out.glob("*/clf-1-a/seed-0"))) == first
    for suffix in ("csv", "md", "json"):
        assert (out / f"table.{suffix}").read_text() == (swept / f"table.{suffix}").read_text()


def forked_at_work_on(folder, process):
    """The processes forked from the same as this one that have a file in the folder open, as trainings have their log."""
    found = set()
    for other in psutil.Process(process.pid).parent().children():
        with contextlib.suppress(psutil.Error, OSError):  # one that has just ended
            found |= {other} if any(Path(file.path).is_relative_to(folder) for file in other.open_files()) else set()
    return found - {psutil.Process(process.pid)}


def test_side_by_side_gives_the_same_and_ends_with_its_parent(store, swept, tmp_path, forked_jobs):
    """Killed once the first is done: no process stays behind that would hold a folder."""
    out = tmp_path / "table"
    command = [sys.executable, "-m", "excl.workflows.cli", *arguments(store, out, "--parallel", "2", seeds=1)]
    forking = {**os.environ, **commands.FORKING}
    process = commands.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=forking)
    trainings = set()
    while not evaluations(out):
        trainings |= forked_at_work_on(out, process)
        assert process.poll() is None or evaluations(out)
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(trainings) == 2
    assert not psutil.wait_procs(trainings, timeout=120)[1], "they end when their parent does"
    assert main(arguments(store, out, "--parallel", "2")) == 0
    assert (out / "table.csv").read_text() == (swept / "table.csv").read_text()
    [log] = out.glob("*/reg-1-a/seed-1/log.txt")
    assert "train: 2 epochs" in log.read_text()


def workers_of(process):
    """The processes in which trainings run."""
    workers = []
    for child in process.children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            workers += [child] if child.cmdline()[1:] == JOB_COMMAND[1:] else []
    return workers


def test_a_process_that_is_killed_costs_its_training_alone(store, swept, tmp_path):
    """As the system does it when memory is short. The processes are fresh interpreters, so that there is time to do it."""
    out = tmp_path / "table"
    command = [sys.executable, "-m", "excl.workflows.cli", *arguments(store, out, "--parallel", "2", seeds=1)]
    process = commands.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    while not list(out.glob("*/clf-1-a/seed-0/log.txt")) or not (workers := workers_of(psutil.Process(process.pid))):
        assert process.poll() is None
        time.sleep(0.005)
    min(workers, key=lambda worker: worker.create_time()).kill()
    shown = process.communicate()[0]
    assert process.returncode == 3
    assert "FAILED: jsonl, clf-1-a, seed 0: its process ended by the signal SIGKILL" in shown
    assert len(evaluations(out)) == 1
    assert main(arguments(store, out)) == 0
    assert (out / "table.csv").read_text() == (swept / "table.csv").read_text()


def test_an_error_for_all_ends_those_that_are_running(store, tmp_path, caplog, forked_jobs):
    """They would go on for a very long time."""
    training = reproduce.SharedTrainConfig(device="cpu")
    config = reproduce.ReproduceConfig(stores=(store,), out=tmp_path, variants=("reg-1-a",), training=training)
    [run, *_] = [job.training.out for job in reproduce._jobs(config, TrainingStore(store))]
    endless = ["--parallel", "2", "--epochs", "100000000", "--patience", "100000000"]
    with Manifest.open(run, stage="train", identity={}, code_version=0):
        assert main(arguments(store, tmp_path, *endless)) == 1
    assert "another process is working on it" in caplog.text
    assert len(forked_jobs) == 2
    assert not any(psutil.pid_exists(process.pid) for process in forked_jobs)


def test_where_several_devices_share_a_training_the_first_evaluates(store, tmp_path):
    training = reproduce.SharedTrainConfig(device="cpu, cpu")
    [job, *_] = reproduce._jobs(
        reproduce.ReproduceConfig(stores=(store,), out=tmp_path, training=training), TrainingStore(store)
    )
    assert (job.training.device, job.evaluation.device) == ("cpu, cpu", "cpu")


def test_a_training_that_fails_costs_itself_alone(store, tmp_path, monkeypatch, caplog, capsys):
    run = train.run

    def failing(config):
        if config.seed == 1:
            raise ArithmeticError("the loss is not a number")
        return run(config)

    monkeypatch.setattr(train, "run", failing)
    assert main(arguments(store, tmp_path / "table")) == 3
    assert "FAILED: jsonl, reg-1-a, seed 1: ArithmeticError: the loss is not a number" in capsys.readouterr().out
    assert {row["seeds"] for row in rows_of(tmp_path / "table")} == {"1"}
    monkeypatch.setattr(train, "run", run)
    assert main(arguments(store, tmp_path / "table")) == 0
    assert {row["seeds"] for row in rows_of(tmp_path / "table") if row["method"].startswith("ExCL")} == {"2"}

    def always(config):
        raise ValueError("nothing to train on")

    monkeypatch.setattr(train, "run", always)
    assert main(arguments(store, tmp_path / "other")) == 2
    assert "nothing could be trained; jsonl, clf-1-a, seed 0: ValueError: nothing to train on" in caplog.text


def test_a_data_set_of_the_papers_is_put_beside_its_cells(store, tmp_path):
    charades = packed_as(tmp_path / "charades", "charades-sta")
    out = tmp_path / "table"
    one = ["--variants", "clf-2-b", "--seeds", "1"]
    assert main(["reproduce", str(charades), str(store), "--out", str(out), *one, *TINY]) == 0
    rows = {(row["dataset"], row["method"], row["queries"], row["figure"]): row for row in rows_of(out)}
    for threshold, cell in ((0.3, 65.1), (0.5, 44.1), (0.7, 22.6)):
        row = rows["charades-sta", "ExCL-clf 2-b", "all", f"R1@{threshold}"]
        assert float(row["paper"]) == cell
        assert float(row["difference"]) == pytest.approx(float(row["mean"]) - cell)
    assert {row["paper"] for (name, _, _, figure), row in rows.items() if name == "jsonl" or "R1" not in figure} == {""}
    for threshold, cell in ((0.3, 54.7), (0.5, 35.6), (0.7, 15.8)):
        row = rows["charades-sta", "Xu et al. 2019 (in the paper)", "all", f"R1@{threshold}"]
        assert (float(row["paper"]), row["mean"], row["seeds"]) == (cell, "", "0")
    assert ("charades-sta", "Ge et al. 2019 (in the paper)", "all", "R1@0.3") not in rows
    assert not [name for name, method, *_ in rows if name == "jsonl" and "paper" in method]
    row = rows["charades-sta", "ExCL-clf 2-b", "all", "R1@0.5"]
    store_of_it = TrainingStore(charades)
    assert json.loads(row["feature_recipe"]) == store_of_it.recipe
    assert row["selection"].startswith("best epoch by R1@0.5, then mIoU on the validation split")
    about = next(one for one in json.loads((out / "table.json").read_text()).values() if one["dataset"] == "charades-sta")
    assert (int(row["num_queries"]), int(row["num_covered"])) == (about["num_queries"], about["num_covered"])
    text = (out / "table.md").read_text()
    ours, others = text.split("## ")[1:]
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in ours.splitlines()
             if line.startswith("|")}  # fmt: skip
    assert lines["Ge et al. 2019 (in the paper)"] == ["-", "-", "-", "-", "-", "-", "30.5", "-", "-", "12.2", "-", "-", "-"]
    assert lines["Xu et al. 2019 (in the paper)"][3::3][:3] == ["54.7", "35.6", "15.8"]
    assert lines["ExCL-clf 2-b"][3::3][:3] == ["65.1", "44.1", "22.6"]
    assert "Xu et al." not in others
    assert main(["reproduce", str(charades), "--out", str(tmp_path / "val"), "--split", "val", *one, *TINY]) == 0
    assert {row["paper"] for row in rows_of(tmp_path / "val")} == {""}, "the paper has no figures of it"


def test_the_papers_cells_are_those_of_the_reference(shared):
    with (shared / "paper" / "excl_table1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 108
    for row in rows:
        assert paper_r1(row["variant"], row["dataset"].replace("_", "-"))[float(row["iou"])] == float(row["r1"])
    assert {row["variant"] for row in rows} == {variant_label(variant_config(name)) for name in VARIANTS}


def test_the_papers_baselines():
    assert paper_r1("Zhang et al. 2018", "charades-sta") == {0.5: 46.5, 0.7: 22.7}
    assert paper_r1("Ge et al. 2019", "tacos-tall") == paper_r1("Ge et al. 2019", "tacos") == {0.3: 24.2, 0.5: 20.0}
    assert paper_r1("Xu et al. 2019", "activitynet-captions") == {0.3: 45.3, 0.5: 27.7, 0.7: 13.6}
    assert all(paper_r1(name, "charades-sta") for name in PAPER_BASELINES)
    assert paper_r1("ExCL-clf 2-b", "jsonl") == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ("all", "clf-1-a")}, "either all or names"),
        ({"stores": ("a", "./a")}, "one of them is given twice"),
        ({"training": {"model": ExCLConfig(variant="clf-1-a")}}, "model.variant: the sweep goes through the variants"),
        ({"training": {"model": ExCLConfig(text_encoder="bag")}}, "model.text_encoder: the sweep goes"),
        ({"training": {"seed": 4}}, "give stores, out and seeds"),
    ],
)
def test_settings_that_contradict_a_sweep_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        reproduce.ReproduceConfig(**{"stores": ("a",), "out": "b", **settings})


def test_all_variants_share_the_sizes(store, tmp_path):
    training = reproduce.SharedTrainConfig(epochs=7, model=ExCLConfig(text_hidden=8, dropout=0.1))
    config = reproduce.ReproduceConfig(stores=(store,), out=tmp_path, training=training)
    jobs = reproduce._jobs(config, reproduce.TrainingStore(store))
    assert len(jobs) == 36
    assert len({job.folder for job in jobs}) == 36
    assert {job.training.model.variant for job in jobs} == set(VARIANTS)
    for job in jobs:
        assert (job.training.epochs, job.training.model.text_hidden, job.training.model.dropout) == (7, 8, 0.1)
        assert job.training.model.parts == VARIANTS[job.training.model.variant]


def test_as_a_step_of_a_recipe(store):
    table = {"stores": [str(store)], "out": "t", "seeds": 1, "training": {"epochs": 5, "model": {"dropout": 0.3}}}
    config = parse("mine", {"reproduce": table})[0]["reproduce"]
    assert (config.training.epochs, config.training.model.dropout) == (5, 0.3)
    [problem] = parse("mine", {"reproduce": {**table, "stores": ["nowhere"]}})[1]
    assert "[reproduce]: stores: nowhere: not there" in problem
