"""`excl run` where others do the work, and what its plan, hints and report say of steps whose videos come and go."""

from __future__ import annotations

import json
import re
import shutil

import commands
import pytest
from shared_fixtures import write_video

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.workflows.cli import main
from excl.workflows.cluster import dask_cluster

pytestmark = pytest.mark.usefixtures("one_thread", "forked_decoders")
RECIPE = """\
[extract]
videos = "videos"
weights = "random:0"
short_side = 32
crop = 32
device = "cpu"
shard_videos = 1
out = "features"
"""
LOCAL = 'running = {executor = "local", workers = 2}\n'
SLURM = 'running = {executor = "slurm", workers = 4, job = ["cores=8", "memory=8GB"], resources = ["GPU=1"]}\n'
TCP = 'running = {executor = "tcp://10.0.0.1:8786", resources = ["GPU=1"]}\n'
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in NAMES:
        write_video(folder / f"{name}.mp4", [100 * i for i in range(60)], rate=10, width=64, height=48)
    return folder


@pytest.fixture
def root(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "root" / "videos")
    (tmp_path / "root" / "r.toml").write_text(RECIPE)
    return tmp_path / "root"


def begin(root, *lines, flags=()):
    (root / "r.toml").write_text(RECIPE + "".join(lines))
    return main(["run", str(root / "r.toml"), *flags])


def done(root):
    manifest = Manifest.read(root / "features")
    return sorted(name.removeprefix("video/") for name in manifest.ids("video/") if not manifest.has_failed(name))


# Who works


def forbidden(*_, **__):
    raise AssertionError("not who was asked to work")


def test_workers_do_it_when_the_command_line_says_so(root, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("excl.pipeline.execution.sharded_stage.inline", forbidden)
    with commands.forked_workers():
        assert begin(root, flags=["--executor", "local", "--workers", "2"]) == 0
    assert "executor: 2 workers on this machine" in caplog.text
    assert done(root) == sorted(NAMES)


def test_this_process_does_it_when_the_command_line_says_so(root, monkeypatch):
    monkeypatch.setattr(dask_cluster, "run_on_workers", forbidden)
    assert begin(root, LOCAL, flags=["--executor", "inline"]) == 0
    assert done(root) == sorted(NAMES)


@pytest.mark.parametrize(
    ("recipe", "flags", "wanted"),
    [
        (LOCAL, [], {"executor": "local", "workers": 2}),
        ("", ["--executor", "local"], {"executor": "local"}),
        (LOCAL, ["--workers", "8"], {"executor": "local", "workers": 8}),
        (LOCAL, ["--executor", "local"], {"executor": "local", "workers": 2}),
        (LOCAL, ["--workers", "0"], {"executor": "local"}),
        (LOCAL, ["--dashboard", "127.0.0.1:8787"], {"executor": "local", "workers": 2, "dashboard": "127.0.0.1:8787"}),
        (SLURM, ["--executor", "local"], {"executor": "local"}),
        (SLURM, ["--executor", "tcp://10.0.0.2:1"], {"executor": "tcp://10.0.0.2:1"}),
        (TCP, ["--executor", "tcp://10.0.0.2:1"], {"executor": "tcp://10.0.0.2:1", "resources": ("GPU=1",)}),
        (SLURM, ["--job", "cores=4"],
         {"executor": "slurm", "workers": 4, "job": ("cores=4",), "resources": ("GPU=1",)}),
    ],
)  # fmt: skip
def test_what_is_given_is_put_over_what_the_recipe_says(root, monkeypatch, recipe, flags, wanted):
    seen = []
    monkeypatch.setattr(dask_cluster, "run_on_workers", lambda _, config: seen.append(config.running) or config.out)
    monkeypatch.setattr("excl.workflows.runner.run.write_report", lambda *_, **__: None)  # there is nothing to tell of
    monkeypatch.setattr("excl.pipeline.artifacts.manifest.Manifest.read", lambda _: Manifest(root, {}, {}))
    assert begin(root, recipe, flags=flags) == 0
    assert seen == [ExecutorSettings(**wanted)]


def test_a_share_needs_no_workers_of_the_recipe(root, monkeypatch):
    monkeypatch.setattr(dask_cluster, "run_on_workers", forbidden)
    assert begin(root, LOCAL, flags=["--shard-range", "1/3", "--only", "extract"]) == 0
    assert done(root) == ["three"]  # the second by name


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("", ["--workers", "8"], "[extract]: running: workers: only with executor local, slurm, …; the executor is inline"),
        ("", ["--dashboard", "0.0.0.0:8787"], "[extract]: running: dashboard: only with executor local or jobs"),
        (TCP, ["--dashboard", "0.0.0.0:8787"], "dashboard: only with executor local or jobs"),
        (LOCAL, ["--executor", "nobody"], "[extract]: running: executor: 'nobody'; expected inline, local, tcp://"),
        ("running = 4\n", ["--workers", "8"], "[extract]: running: Input should be"),
    ],
)
def test_what_does_not_fit_is_refused(root, caplog, recipe, flags, message):
    assert begin(root, recipe, flags=flags) == 2
    assert message in caplog.text


def test_a_dashboard_is_refused_where_no_cluster_is_started():
    for executor in ("inline", "tcp://10.0.0.1:8786"):
        with pytest.raises(ValueError, match="dashboard: only with executor local or jobs"):
            ExecutorSettings(executor=executor, dashboard="0.0.0.0:8787")
    assert ExecutorSettings(executor="slurm", dashboard="0.0.0.0:8787").dashboard == "0.0.0.0:8787"


def test_the_options_have_the_same_help_as_those_of_extract(capsys):
    helps = {}
    for command in ("run", "extract"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helps[command] = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("a Dask cluster on this machine", "The resources of a job", "Where the dashboard of a cluster"):
        assert all(words in text for text in helps.values())
    assert helps["run"].count("(default: the recipe's)") == 9


# What the plan says


def plan(root, capsys, *lines, flags=()):
    capsys.readouterr()
    assert begin(root, *lines, flags=["--dry-run", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("executor", ["tcp://10.0.0.1:8786", "slurm"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_login_node_without_a_gpu_plans_for_those_who_have_one(root, capsys, executor, command):
    flags = ["--set", "extract.device=cuda", "--set", f"extract.running.executor={executor}"]
    assert main([command, str(root / "r.toml"), *flags, *(["--dry-run"] if command == "run" else [])]) == 0
    assert "about 90 frames, 9 rows, 3 shards, " in capsys.readouterr().out


def test_the_device_of_others_is_not_looked_for_here(root, capsys):
    flags = ["--set", "extract.device=cuda:77", "--executor", "tcp://10.0.0.1:8786"]
    assert "about 90 frames" in plan(root, capsys, flags=flags)
    assert begin(root, flags=["--dry-run", *flags, "--executor", "inline"]) == 2


# Videos that failed


def test_hints_and_plan_say_how_failed_videos_are_tried_again_in_a_recipe(root, capsys, caplog):
    (root / "videos" / "broken.mp4").write_bytes(b"no video")
    assert begin(root) == 3
    assert "--retry-failed (in a recipe, retry_failed = true) tries them again" in caplog.text
    shown = plan(root, capsys)
    assert "done already, nothing to do: 3 of 4 videos, " in shown
    assert shown.endswith("; 1 failed, which retry_failed = true tries again\n")
    shutil.copy(root / "videos" / "one.mp4", root / "videos" / "broken.mp4")
    assert begin(root, "retry_failed = true\n") == 0  # as the hint says
    assert "failed" not in plan(root, capsys)


def test_a_plan_counts_videos_that_are_there_again(root, capsys):
    (root / "list.txt").write_text("".join(f"videos/{name}.mp4\n" for name in NAMES))
    (root / "videos" / "two.mp4").rename(root / "two.mp4")
    flags = ["--set", "extract.videos=list.txt"]
    assert begin(root, flags=flags) == 3
    assert "done already, nothing to do: 2 of 3 videos" in plan(root, capsys, flags=flags)
    (root / "two.mp4").rename(root / "videos" / "two.mp4")
    assert "resumes: 1 of 3 videos left" in plan(root, capsys, flags=flags)
    assert begin(root, flags=flags) == 0
    assert done(root) == sorted(NAMES)


# What is told of steps that only follow from others

CHAIN = """\
[decode]
videos = "videos"
short_side = 32
crop = 32
out = "frames"

[extract]
frames = "frames"
weights = "random:0"
short_side = 32
crop = 32
device = "cpu"
out = "features"

[tokenise]
dataset = "own.jsonl"
glove = "vectors.txt"
out = "queries"

[pack]
features = "features"
queries = "queries"
out = "store"
"""


def became(root):
    """What the report says that the run has made of every step."""
    lines = (root / "excl-report.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines if line.startswith("| ")]
    return dict(rows[1:])


@pytest.fixture
def chain(root):
    (root / "r.toml").write_text(CHAIN)
    rows = [{"video_id": name, "query": "it counts", "start_s": 0, "end_s": 3} for name in NAMES]
    (root / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "vectors.txt").write_text("it 0.1 0.2\n")
    return root


def test_plan_and_report_tell_what_is_really_made_again(chain, capsys):
    root = chain

    def run(*flags):
        capsys.readouterr()
        assert main(["run", str(root / "r.toml"), *flags]) == 0
        return capsys.readouterr().out

    run()
    assert became(root) == dict.fromkeys(("decode", "extract", "tokenise", "pack"), "new")
    before = {name: (root / name / "records.jsonl").stat() for name in ("frames", "features", "store")}

    other = ["--set", "decode.shard_videos=2"]  # the same frames, in other shards
    shown = run("--dry-run", *other)
    assert re.search("decode    new in frames-[0-9a-f]{8}, because decode.shard_videos was 16 and is 2", shown)
    assert "extract   follows from decode\n" in shown
    run(*other)
    after = {name: (root / name / "records.jsonl").stat() for name in before}
    assert [name for name in before if after[name].st_mtime_ns != before[name].st_mtime_ns] == []
    assert became(root) == {"decode": "new", "extract": "unchanged", "tokenise": "unchanged", "pack": "unchanged"}

    assert "all was done already" in run()
    write_video(root / "videos" / "four.mp4", [100 * i for i in range(60)], rate=10, width=64, height=48)
    run()
    assert became(root) == {"decode": "gone on", "extract": "gone on", "tokenise": "unchanged", "pack": "new"}
    run(*other)
    assert became(root)["decode"] == "gone on"
    assert "all was done already" in run(*other)


SWEEP = """\
[reproduce]
stores = ["store"]
variants = ["clf-1-a", "reg-1-a"]
seeds = 1
split = "val"
out = "sweep"
[reproduce.training]
epochs = 1
device = "cpu"
model = {text_hidden = 8, video_hidden = 8, predictor_hidden = 8, mlp_hidden = 8}
"""


def test_a_sweep_that_is_done_has_nothing_to_do(chain, capsys):
    def run(*flags):
        capsys.readouterr()
        assert main(["run", str(chain / "r.toml"), *flags]) == 0
        return capsys.readouterr().out

    (chain / "r.toml").write_text(CHAIN + SWEEP)
    run("--set", 'reproduce.variants=["clf-1-a"]')
    assert "reproduce  to do: whatever is not done yet" in run("--dry-run")  # the other variant
    run()
    assert "reproduce  done already, nothing to do: 2 trainings with their evaluations" in run("--dry-run")
    before = {path: path.read_bytes() for name in ("logs", ".") for path in (chain / name).glob("*") if path.is_file()}
    assert "r.toml: all was done already" in run()
    after = {path: path.read_bytes() for name in ("logs", ".") for path in (chain / name).glob("*") if path.is_file()}
    assert after == before  # neither a log nor a report
    for other in ("reproduce.seeds=2", "reproduce.training.epochs=2", "reproduce.split=test"):
        assert "reproduce  to do: whatever is not done yet" in run("--dry-run", "--set", other)
    assert "reproduce  follows from pack" in run("--dry-run", "--set", "tokenise.min_count=2")
    [made] = (chain / "sweep").glob("*/reg-1-a/seed-0/evaluation/metrics.json")
    made.unlink()
    assert "reproduce  to do: whatever is not done yet" in run("--dry-run")
