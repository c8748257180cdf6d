"""`excl run`: what it says beforehand, what it does again and what not, what it leaves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import commands
import filelock
import pytest
from shared_fixtures import write_video

from excl.pipeline import extract
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training import trainer
from excl.workflows.cli import main
from excl.workflows.pages import report as report_page
from excl.workflows.runner import run as run_module
from excl.workflows.runner.estimates import VideoLengths, feature_size
from excl.workflows.runner.recipe_variants import apply_variant

pytestmark = pytest.mark.usefixtures("one_thread", "forked_decoders")
RECIPE = """\
# Three videos that count.
# They are nowhere to be had.

[extract]
videos = "videos"
weights = "random:0"
short_side = 32
crop = 32
out = "features"

[tokenise]
dataset = "own.jsonl"
glove = "vectors.txt"
out = "queries"

[pack]
features = "features"
queries = "queries"
out = "store"

[train]
store = "store"
epochs = 2
device = "cpu"
model = {text_hidden = 8, video_hidden = 8, predictor_hidden = 8, mlp_hidden = 8}
out = "run"

[evaluate]
run = "run"
store = "store"
split = "val"
out = "evaluation"

[variants.dense]
extract = {stride = 4}
"""
NAMES = ("one", "two", "three")
DIGEST = "[0-9a-f]{8}"  # at the end of a folder's name that has settings of its own
FRAMES = 60  # of each, at 10 a second: 30 samples and 3 rows


def begin(folder):
    (folder / "videos").mkdir()
    for name in NAMES:
        write_video(folder / "videos" / f"{name}.mp4", [100 * i for i in range(FRAMES)], rate=10)
    rows = [{"video_id": name, "query": "it counts", "start_s": 0, "end_s": 3} for name in NAMES]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "vectors.txt").write_text("it 0.1 0.2\n")
    (folder / "r.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return begin(tmp_path_factory.mktemp("begun"))


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    """All done once."""
    folder = tmp_path_factory.mktemp("finished") / "root"
    shutil.copytree(begun, folder)
    assert main(["run", str(folder / "r.toml"), "--until", "tokenise"]) == 0
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"videos", "features", "queries", "logs"}
    assert main(["run", str(folder / "r.toml")]) == 0
    return folder


@pytest.fixture
def new(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "new")


@pytest.fixture
def small(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "small")


def again(folder, *more):
    return main(["run", str(folder / "r.toml"), *more])


def made(folder):
    """The folders by name, each with what tells it from another of that name."""
    folders = (path for path in folder.iterdir() if path.is_dir() and path.name != "logs")
    return {path.name: path.stat().st_ino for path in folders}


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.endswith(".lock")}


def planned(folder, capsys, *more):
    """What a dry run says of every step, and that it changes nothing."""
    before = everything(folder)
    capsys.readouterr()
    assert again(folder, "--dry-run", *more) == 0
    assert everything(folder) == before
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:] if line.startswith("  ") and line[2] != " "}


def report(folder):
    return (folder / "excl-report.md").read_text()


# What it says beforehand


def test_a_plan_for_what_is_new(new, capsys):
    plan = planned(new, capsys)
    assert plan["extract"].startswith("new: 3 videos, 0.01 hours of video, about 90 frames, 9 rows, 1 shards, 0.0 MB (")
    assert "GB free)" in plan["extract"]
    assert {step: what for step, what in plan.items() if step != "extract"} == dict.fromkeys(
        ("tokenise", "pack", "train", "evaluate"), "new"
    )


def test_nothing_is_downloaded_for_a_plan(new, small, capsys):
    wanted = ["--set", "extract.weights=kinetics", "--set", "tokenise.glove=6B"]
    plan = planned(new, capsys, *wanted)
    assert plan["extract"].startswith("new: 3 videos, ")
    assert plan["tokenise"] == "new"
    plan = planned(small, capsys, *wanted)
    assert plan["extract"] == "to do: the weights kinetics are not in the cache and are downloaded first"
    assert plan["tokenise"] == "to do: the word vectors 6B are not in the cache and are downloaded first"
    assert plan["pack"] == "follows from extract and tokenise"


def test_a_plan_for_what_is_done(small, capsys):
    plan = planned(small, capsys)
    assert all(what.startswith("done already, nothing to do") for what in plan.values())
    assert plan["extract"].startswith(
        "done already, nothing to do: 3 videos, 0.01 hours of video, 90 frames, 9 rows, 1 shards"
    )
    assert plan["tokenise"].endswith(": train 2, val 1 moments; 4 words")
    assert plan["pack"].endswith(": train 2 of 2, val 1 of 1 queries have features")
    assert plan["train"].endswith(": 2 epochs")


def test_a_plan_says_which_setting_is_another_and_what_follows(small, capsys):
    plan = planned(small, capsys, "--set", "extract.stride=4")
    assert re.match(rf"new in features-{DIGEST}, because extract.rows.stride was 8 and is 4: 3 videos", plan["extract"])
    assert ", 21 rows, " in plan["extract"]  # 32 / 4 - 1 of each
    assert plan["tokenise"].startswith("done already")
    assert plan["pack"] == "follows from extract"
    assert plan["train"] == "follows from pack"
    assert plan["evaluate"] == "follows from pack and train"


def test_a_plan_for_videos_that_are_new_and_for_one_step(small, capsys):
    write_video(small / "videos" / "four.mp4", [100 * i for i in range(FRAMES)], rate=10)
    plan = planned(small, capsys)
    assert plan["extract"].startswith("resumes: 1 of 4 videos left: 1 videos, 0.00 hours of video, about 30 frames, 3 rows")
    assert plan["pack"] == "follows from extract"
    assert list(planned(small, capsys, "--only", "pack")) == ["pack"]
    assert list(planned(small, capsys, "--until", "pack")) == ["extract", "tokenise", "pack"]
    assert again(small, "--until", "extract") == 0
    assert planned(small, capsys)["extract"].startswith("done already, nothing to do: 4 videos")


def test_a_plan_for_frames_that_are_still_to_be_decoded(new, capsys):
    text = RECIPE[: RECIPE.index("[tokenise]")].replace('videos = "videos"', 'frames = "frames"', 1)
    decode = '[decode]\nvideos = "videos"\nshort_side = 32\ncrop = 32\nout = "frames"\n'
    (new / "r.toml").write_text(decode + text)
    plan = planned(new, capsys)
    assert plan["decode"].startswith("new: 3 videos, 0.01 hours of video, about 90 frames (")
    assert plan["extract"] == "new"
    assert again(new) == 0
    write_video(new / "videos" / "four.mp4", [100 * i for i in range(FRAMES)], rate=10)
    plan = planned(new, capsys)
    assert plan["decode"].startswith("resumes: 1 of 4 videos left: 1 videos, 0.00 hours of video, about 30 frames (")
    assert plan["extract"] == "follows from decode"
    assert again(new, "--only", "decode") == 0
    assert planned(new, capsys)["extract"].startswith(
        "resumes: 1 of 4 videos left: 1 videos, 0.00 hours of video, about 30 frames"
    )


def test_a_plan_for_videos_that_failed(new, capsys):
    (new / "videos" / "broken.mp4").write_bytes(b"no video")
    assert again(new, "--only", "extract") == 3
    assert planned(new, capsys)["extract"].startswith("done already, nothing to do: 3 of 4 videos, ")
    assert planned(new, capsys, "--set", "extract.retry_failed=true")["extract"].startswith("resumes: 1 of 4 videos left")
    write_video(new / "videos" / "broken.mp4", [100 * i for i in range(FRAMES)], rate=10)  # mended
    assert planned(new, capsys)["extract"].startswith("resumes: 1 of 4 videos left")
    assert again(new, "--only", "extract") == 0
    assert planned(new, capsys)["extract"].startswith("done already, nothing to do: 4 videos, ")


def test_a_dry_run_makes_no_root_and_lists_variants(begun, tmp_path, capsys):
    root = tmp_path / "nowhere"
    assert main(["run", "demo", "--root", str(root), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"demo, in {root}:" in shown
    assert "demo      new: 192 videos, 1.51 hours of video" in shown
    assert not root.exists()
    assert main(["run", str(begun / "r.toml"), "--dry-run", "--variant", "dense"]) == 0
    assert "r.toml (variants: dense, this one), in" in capsys.readouterr().out


def test_where_missing_data_is_to_be_had(tmp_path, caplog):
    (tmp_path / "r.toml").write_text(RECIPE)
    for more in ([], ["--dry-run"]):
        caplog.clear()
        assert again(tmp_path, *more) == 2
        assert "[extract]: videos: videos: not there, and no earlier step makes it" in caplog.text
        assert "r.toml says:\nThree videos that count.\nThey are nowhere to be had.\n" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]
    assert main(["run", "tacos", "--root", str(tmp_path / "none")]) == 2
    assert "Max Planck" in caplog.text
    assert not (tmp_path / "none").exists()


def test_what_many_videos_take_follows_from_some_of_them(tmp_path):
    config = extract.ExtractConfig(out=tmp_path, videos=tmp_path, weights="random:0", shard_videos=8)
    size = feature_size(config, VideoLengths([(16.0, 25.0), (32.0, 25.0)], 20))
    assert (size.frames, size.rows, size.shards) == (2400, 10 * (9 + 19), 3)  # 80 and 160 frames: ceil(T / 8) - 1 rows
    assert size.num_bytes == size.rows * (1024 * 2 + 2 * 8)
    assert VideoLengths([(16.0, 25.0), (32.0, 25.0)], 20).hours == 20 * 24 / 3600


# What is done again, and what not, and where


def test_a_second_run_does_nothing(small, capsys, caplog):
    before = everything(small)
    assert again(small) == 0
    assert everything(small) == before  # no log either, and the report is of the run that did something
    assert "r.toml: all was done already" in capsys.readouterr().out


def test_a_page_that_fails_costs_no_finished_run(small, caplog, monkeypatch):
    (small / "excl-report.html").unlink(missing_ok=True)
    monkeypatch.setattr(report_page, "run", lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert again(small) == 0
    assert "there is no page about this run: RuntimeError: out of memory" in caplog.text


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("train.model.variant=reg-1-a", {"run", "evaluation"}),
        ("tokenise.min_count=2", {"queries", "store", "run", "evaluation"}),
        ("extract.stride=4", {"features", "store", "run", "evaluation"}),
    ],
)
def test_another_setting_has_folders_of_its_own_and_finds_them_again(small, capsys, setting, changed):
    before = made(small)
    content = {name: everything(small / name) for name in before}
    assert again(small, "--set", setting) == 0
    other = made(small)
    assert {name: other[name] for name in before} == before
    assert {name: everything(small / name) for name in before} == content
    assert {re.sub(f"-{DIGEST}$", "", name) for name in other.keys() - before.keys()} == changed
    assert len(other) == len(before) + len(changed)
    assert all(what.startswith("done already, nothing to do") for what in planned(small, capsys).values())
    assert again(small) == 0
    assert made(small) == other
    plan = planned(small, capsys, "--set", setting)
    assert sum(bool(re.match(rf"done already in .*-{DIGEST}, nothing to do", what)) for what in plan.values()) == len(
        changed
    )
    assert sum(what.startswith("done already, nothing to do") for what in plan.values()) == 5 - len(changed)
    assert again(small, "--set", setting) == 0
    assert made(small) == other


def test_what_was_made_beside_is_found_by_one_step_alone(small, capsys):
    """`--only evaluate` evaluates the run of its settings, and reads the store that this run was trained on."""
    setting = ["--set", "extract.stride=4"]
    assert again(small, *setting, "--until", "train") == 0
    before = made(small)
    assert again(small, *setting, "--only", "evaluate") == 0
    [new] = made(small).keys() - before.keys()
    recipe = json.loads((small / new / "metrics.json").read_text())["feature_recipe"]
    assert recipe["rows"]["stride"] == 4
    assert again(small, *setting) == 0
    assert made(small).keys() == before.keys() | {new}


def test_one_step_alone_never_reads_the_results_of_other_settings(small, caplog):
    """Neither where nothing of its settings was made, nor where some of it was removed."""
    setting = ["--set", "extract.stride=4"]
    before = made(small)
    assert again(small, *setting, "--only", "evaluate") == 2
    assert "which has results of other settings" in caplog.text
    assert made(small) == before
    assert again(small, *setting) == 0
    [features] = small.glob("features-*")
    shutil.rmtree(features)
    assert again(small, *setting, "--only", "evaluate") == 2
    assert again(small, "--only", "evaluate") == 0, "the plain folders are those of the plain settings"


def test_a_folder_that_is_named_through_a_link_is_the_same_folder(small, tmp_path):
    (tmp_path / "link").symlink_to(small)
    recipe = (small / "r.toml").read_text()
    linked = recipe.replace('features = "features"', f'features = "{tmp_path / "link" / "features"}"')
    assert linked != recipe
    (small / "r.toml").write_text(linked)
    assert again(small, "--set", "extract.stride=4", "--until", "pack") == 0
    [store] = small.glob("store-*")
    assert TrainingStore(store).recipe["rows"]["stride"] == 4


def test_a_run_that_was_killed_goes_on_in_the_folder_of_its_settings(small, capsys, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "span_loss", killed)
        assert again(small, "--set", "extract.stride=4") == 130
    folders = made(small)
    assert all(what.startswith("done already, nothing to do") for what in planned(small, capsys).values())
    assert again(small) == 0
    assert made(small) == folders
    plan = planned(small, capsys, "--set", "extract.stride=4")
    assert re.match(f"done already in features-{DIGEST}, nothing to do: 3 videos", plan["extract"])
    assert re.match(f"done already in store-{DIGEST}, nothing to do", plan["pack"])
    assert again(small, "--set", "extract.stride=4") == 0
    assert {name: made(small)[name] for name in folders} == folders


def test_a_plain_folder_that_was_removed_is_for_any_settings(small):
    assert again(small, "--set", "train.seed=1") == 0
    [run] = small.glob("run-*")
    shutil.rmtree(small / "run")
    assert again(small, "--set", "train.seed=1") == 0
    assert not (small / "run").exists()  # its results are in the other folder
    shutil.rmtree(run)
    assert again(small, "--only", "train", "--set", "train.seed=1") == 0
    assert (small / "run").exists()
    assert not run.exists()


def test_an_own_folder_that_is_damaged_is_said_to_be(small, caplog):
    assert again(small, "--set", "train.seed=1") == 0
    [run] = small.glob("run-*")
    (run / "manifest.json").write_text((run / "manifest.json").read_text()[:-10])
    assert again(small, "--set", "train.seed=1") == 2
    assert f"{run.name}/manifest.json: damaged" in caplog.text
    assert again(small) == 0


def test_a_folder_has_one_writer_at_a_time(small, caplog):
    before = made(small)
    assert again(small, "--set", "train.seed=1", "--only", "train") == 0
    [run] = small.glob("run-*")
    with filelock.FileLock(run / ".lock"):
        assert again(small, "--set", "train.seed=1", "--only", "train") == 1
        assert "another process is working on it" in caplog.text
        assert again(small, "--only", "train") == 0  # other settings, in another folder
    assert made(small) == {**before, run.name: made(small)[run.name]}


def test_two_runs_of_other_settings_at_once(small):
    """Side by side, both from nothing: neither reads what the other makes, and both find it again."""
    for name in ("features", "queries", "store", "run", "evaluation"):
        shutil.rmtree(small / name)
    command = [sys.executable, "-m", "excl.workflows.cli", "run", str(small / "r.toml")]
    settings = [["--set", "extract.stride=4"], ["--set", "extract.stride=8"]]
    processes = [commands.start([*command, *more], stderr=subprocess.PIPE, text=True) for more in settings]
    errors = [process.communicate()[1] for process in processes]
    for process, error, more in zip(processes, errors, settings, strict=True):
        assert process.returncode == 0 or "another process is working on it" in error
        assert again(small, *more) == 0
    strides = {store.recipe["rows"]["stride"] for store in map(TrainingStore, small.glob("store*"))}
    assert strides == {4, 8}
    for folder in small.glob("store*"):
        names = {path.name.replace("store", "features") for path in small.glob("features*")}
        assert len(names) == 2
        assert TrainingStore(folder).recipe in [FeatureStore(small / name).recipe for name in names]


def test_a_run_that_lost_the_plain_name_to_another_goes_beside(small, monkeypatch):
    """Between its choice of the folder and its first result another run of other settings has begun there."""
    shutil.rmtree(small / "features")
    original = run_module.run_step

    def late(step, config):
        if step.name != "extract":
            return original(step, config)
        monkeypatch.setattr(run_module, "run_step", original)
        assert again(small, "--only", "extract") == 0
        return original(step, config)

    monkeypatch.setattr(run_module, "run_step", late)
    assert again(small, "--only", "extract", "--set", "extract.stride=4") == 0
    [beside] = small.glob("features-*")
    assert [FeatureStore(folder).recipe["rows"]["stride"] for folder in (small / "features", beside)] == [8, 4]


@pytest.mark.parametrize("name", ["features", "run"])
def test_what_was_begun_and_holds_nothing_takes_any_settings(small, capsys, name):
    """A run with other settings was killed before anything was done."""
    stage = Manifest.read(small / name).header["stage"]
    shutil.rmtree(small / name)
    before = made(small)
    with Manifest.open(small / name, stage=stage, identity={"other": 1}, code_version=1):
        pass
    if name == "features":
        assert planned(small, capsys)["extract"].startswith("new: 3 videos")
    assert again(small) == 0
    assert made(small).keys() == before.keys() | {name}


def test_shares_of_other_settings_meet_in_one_folder(small):
    before = made(small)
    share = ["--only", "extract", "--set", "extract.stride=4", "--set", "extract.shard_videos=2", "--shard-range"]
    assert again(small, *share, "1/2") == 0
    assert again(small, *share, "0/2") == 0
    [beside] = small.glob("features-*")
    assert made(small) == {**before, beside.name: made(small)[beside.name]}
    assert len(FeatureStore(beside)) == 3


def test_a_folder_that_is_a_link_has_the_others_on_its_disk(small, tmp_path):
    (tmp_path / "large").mkdir()
    (small / "features").rename(tmp_path / "large" / "features")
    (small / "features").symlink_to(tmp_path / "large" / "features")
    assert again(small, "--set", "extract.stride=4", "--until", "pack") == 0
    [beside] = (tmp_path / "large").glob("features-*")
    assert FeatureStore(beside).recipe["rows"]["stride"] == 4
    assert not list(small.glob("features-*"))
    [store] = small.glob("store-*")
    assert TrainingStore(store).recipe == FeatureStore(beside).recipe
    assert again(small) == 0
    assert (small / "features").is_symlink()


def test_predictions_of_other_settings_are_written_over(small):
    wanted = ["--set", "evaluate.predictions=p.jsonl"]
    assert again(small, *wanted) == 0
    assert (small / "p.jsonl").read_bytes() == (small / "evaluation" / "predictions.jsonl").read_bytes()
    assert again(small, *wanted, "--set", "train.seed=1") == 0
    [evaluation] = small.glob("evaluation-*")
    assert (small / "p.jsonl").read_bytes() == (evaluation / "predictions.jsonl").read_bytes()
    (small / "p.jsonl").write_text("somebody's\n")
    assert again(small, *wanted) == 2
    (small / "theirs").mkdir()
    (small / "theirs" / "predictions.jsonl").write_text("somebody's\n")
    assert again(small, "--set", "evaluate.predictions=theirs/predictions.jsonl") == 2
    assert (small / "theirs" / "predictions.jsonl").read_text() == "somebody's\n"


def test_what_is_made_can_be_used_without_what_it_was_made_from(small, caplog):
    shutil.rmtree(small / "videos")
    assert again(small, "--only", "evaluate") == 0
    assert again(small, "--only", "train", "--set", "train.seed=1") == 0
    assert again(small) == 2
    assert "[extract]: videos: videos: not there" in caplog.text


DEMO = ["demo.num_train=1", "demo.num_val=1", "demo.num_test=1", "demo.min_seconds=12.0", "demo.max_seconds=13.0"]


def test_videos_that_the_recipe_makes_may_change(tmp_path, capsys):
    def run(*settings, dry=False):
        arguments = [x for setting in (*DEMO, *settings) for x in ("--set", setting)]
        return main(
            ["run", "demo", "--root", str(tmp_path), "--until", "tokenise", *arguments, *(["--dry-run"] if dry else [])]
        )

    assert run() == 0
    before = made(tmp_path)
    assert run("demo.seed=1", dry=True) == 0
    shown = capsys.readouterr().out
    assert re.search(f"demo      new in data-{DIGEST}, because demo.seed was 0 and is 1: 3 videos", shown)
    assert "decode    follows from demo\n" in shown
    assert "extract   follows from decode\n" in shown
    assert run("demo.seed=1") == 0
    other = made(tmp_path)
    assert {re.sub(f"-{DIGEST}$", "", name) for name in other.keys() - before.keys()} == before.keys()
    own = {re.sub(f"-{DIGEST}$", "", name): tmp_path / name for name in other.keys() - before.keys()}
    for name in ("frames", "features"):
        sources = [record["source"] for record in Manifest.read(own[name]).records.values() if "source" in record]
        videos = {path.name: sha256_file(path) for path in (own["data"] / "videos").iterdir()}
        assert {source["file"]: source["sha256"] for source in sources} == videos
    for settings in ([], ["demo.seed=1"]):
        capsys.readouterr()
        assert run(*settings, dry=True) == 0
        assert capsys.readouterr().out.count("done already") == 4
        assert run(*settings) == 0
    assert made(tmp_path) == other


def test_one_step_alone(small):
    before = made(small)
    assert again(small, "--only", "train", "--set", "train.seed=1") == 0
    [run] = made(small).keys() - before.keys()
    assert re.fullmatch(f"run-{DIGEST}", run)
    assert again(small, "--only", "decode") == 2


def test_variants_live_side_by_side(small, capsys):
    before = made(small)
    assert again(small, "--variant", "dense") == 0
    now = made(small)
    assert set(now) == {*before, *(f"{name}-dense" for name in ("features", "store", "run", "evaluation"))}
    assert {name: now[name] for name in before} == before
    assert "Variant: dense." in (small / "excl-report-dense.md").read_text()
    assert "21 rows" in (small / "excl-report-dense.md").read_text()
    assert "Variant" not in report(small)
    for more in ([], ["--variant", "dense"]):
        assert all(what.startswith("done") for what in planned(small, capsys, *more).values())


def test_variants_of_a_recipe_with_paths_from_the_top_of_the_disk(small, capsys):
    text = RECIPE.replace('features = "features"', f'features = "{small.absolute()}/./features"')
    (small / "r.toml").write_text(text)
    assert all(what.startswith("done already") for what in planned(small, capsys).values())
    assert planned(small, capsys, "--set", "extract.stride=4")["pack"] == "follows from extract"
    assert again(small, "--variant", "dense") == 0
    assert {"features-dense", "store-dense", "run-dense", "evaluation-dense"} < set(made(small))
    assert TrainingStore(small / "store-dense").recipe["rows"]["stride"] == 4


def test_what_is_renamed_in_a_variant(tmp_path):
    tables = {
        "extract": {"videos": "test/videos", "weights": "test", "out": "test"},
        "tokenise": {"glove": "test/glove.txt", "test": ["test"], "out": "queries"},
        "evaluate": {"run": f"{tmp_path}/test", "store": "../test", "split": "test", "out": "evaluation"},
    }
    made = apply_variant(tables, {"extract": {"stride": 4}}, name="v", root=tmp_path)
    assert made["extract"] == {"videos": "test/videos", "weights": "test", "stride": 4, "out": "test-v"}
    assert made["tokenise"] == {"glove": "test-v/glove.txt", "test": ["test"], "out": "queries-v"}
    assert made["evaluate"] == {"run": f"{tmp_path}/test-v", "store": "../test", "split": "test", "out": "evaluation-v"}


def test_new_videos_are_added_in_the_folder_of_each_setting(small, capsys):
    setting = ["--set", "extract.stride=4"]
    assert again(small, *setting, "--only", "extract") == 0
    write_video(small / "videos" / "four.mp4", [100 * i for i in range(FRAMES)], rate=10)
    [beside] = small.glob("features-*")
    plan = planned(small, capsys, *setting)
    assert plan["extract"].startswith(f"resumes in {beside.name}: 1 of 4 videos left: 1 videos, ")
    assert plan["pack"] == "follows from extract"
    assert again(small, *setting) == 0
    assert (len(FeatureStore(beside)), len(FeatureStore(small / "features"))) == (4, 3)
    assert planned(small, capsys)["extract"].startswith("resumes: 1 of 4 videos left: ")
    assert again(small) == 0
    assert planned(small, capsys)["extract"].startswith("done already, nothing to do: 4 videos")


def test_settings_may_be_given_several_times(small, capsys):
    plan = planned(small, capsys, "--set", "train.seed=1", "--set", "extract.stride=4", "--set", "train.epochs=3")
    assert re.match(f"new in features-{DIGEST}, because extract.rows.stride", plan["extract"])
    only = planned(small, capsys, "--only", "train", "--set", "train.seed=1", "--set", "train.epochs=3")
    changes = "train.epochs was 2 and is 3, train.seed was 0 and is 1"
    assert re.fullmatch(f"new in run-{DIGEST}, because {changes}", only["train"])


# What it leaves


def test_a_report_with_failures_coverage_and_figures(new, capsys):
    (new / "videos" / "broken.mp4").write_bytes(b"no video")
    splits = {"one": "train", "two": "val", "three": "train", "broken": "val", "gone": "val"}
    rows = [{"video_id": v, "query": "it counts", "start_s": 0, "end_s": 3, "split": split} for v, split in splits.items()]
    (new / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert again(new, "--set", "train.seed=3") == 3  # missing videos stop nothing
    shown = capsys.readouterr().out
    text = report(new)
    assert "In place of the recipe's own settings: `train.seed=3`." in text
    assert re.search(
        r"\| extract +\| new +\| \d+ s +\| 3 of 4 videos, 0.01 hours of video, 90 frames, 9 rows, 1 shards", text
    )
    assert "- extract: 1 not_a_video: broken\n" in text
    assert "- train: 2 of 2 queries have features (100.0 %)\n" in text
    assert "- val: 1 of 3 queries have features (33.3 %); 2 missing videos: broken, gone\n" in text
    assert "- train: `run`\n" in text
    table = shown[shown.index("jsonl, split val") :]
    assert table[: table.index("metrics:")] in text
    assert re.search(r"r\.toml: done in \d+ s: extract \d+ s, .*evaluate \d+ s; 1 videos failed\n", shown)
    assert f"report: {new / 'excl-report.md'}\n" in shown


def test_a_sweep_is_planned_and_its_table_reported(small, capsys):
    model = RECIPE[RECIPE.index("model = ") :].splitlines()[0]
    with (small / "r.toml").open("a") as file:
        file.write('[reproduce]\nstores = ["store"]\nvariants = ["clf-1-a"]\nseeds = 1\nsplit = "val"\nout = "sweep"\n')
        file.write(f'[reproduce.training]\nepochs = 1\ndevice = "cpu"\n{model}\n')
    assert planned(small, capsys)["reproduce"] == "to do: whatever is not done yet"
    assert again(small) == 0
    assert (small / "sweep" / "table.md").read_text().rstrip() in report(small)


def test_a_sweep_of_other_settings_has_a_folder_of_its_own(small, caplog):
    model = RECIPE[RECIPE.index("model = ") :].splitlines()[0]
    sweep = '[reproduce]\nstores = ["store"]\nvariants = ["clf-1-a"]\nseeds = 1\nsplit = "val"\nout = "sweep"\n'
    with (small / "r.toml").open("a") as file:
        file.write(f'{sweep}[reproduce.training]\nepochs = 1\ndevice = "cpu"\n{model}\n')
    assert again(small) == 0
    content = everything(small / "sweep")
    other = ["--set", "reproduce.training.epochs=2"]
    assert again(small, *other) == 0
    [beside] = small.glob("sweep-*")
    other_content = everything(beside)
    with filelock.FileLock(beside / ".lock"):
        assert again(small, *other) == 1
    assert "another process is working on it" in caplog.text
    for more in ([], other):
        assert again(small, *more) == 0
    assert everything(small / "sweep").keys() == content.keys()
    assert everything(beside).keys() == other_content.keys()
    assert len(list(small.glob("sweep*"))) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("extract.new_version=true", "[extract]: new_version: not in a recipe"),
        ("extract.weights.x=1", "set: found 'extract.weights.x=1', but extract.weights has no settings in it"),
    ],
)
def test_settings_that_no_recipe_has(small, caplog, setting, message):
    assert again(small, "--set", setting) == 2
    assert message in caplog.text


def test_a_log_with_times(small, capsys):
    [*_, log] = sorted((small / "logs").iterdir())
    again(small, "--set", "train.seed=3")
    [shown] = re.findall(r"^log: (.*)$", capsys.readouterr().out, re.MULTILINE)
    [new] = set((small / "logs").iterdir()) - {log, *sorted((small / "logs").iterdir())[:-1]}
    assert shown == str(new)
    lines = new.read_text().splitlines()
    starts = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)]
    assert any(re.search(f"new in run-{DIGEST}, because train.seed was 0 and is 3$", line) for line in starts)
    assert any(re.search(rf"\[4/5\] train, in run-{DIGEST}$", line) for line in starts)
    assert f"`logs/{new.name}`" in report(small)


def test_an_interrupted_run_leaves_its_log_and_goes_on(small, capsys, monkeypatch):
    steps = []
    original = trainer.span_loss

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    before = set((small / "logs").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "span_loss", interrupted)
        assert again(small, "--set", "train.seed=3") == 130
    [log] = set((small / "logs").iterdir()) - before
    text = log.read_text()
    assert "interrupted" in text
    assert "Traceback (most recent call last)" in text
    assert "in interrupted\n" in text  # where it was raised
    plan = planned(small, capsys, "--set", "train.seed=3")
    assert re.fullmatch(f"resumes in run-{DIGEST}: 1 of at most 2 epochs done", plan["train"])
    assert plan["evaluate"] == "follows from train"
    assert again(small, "--set", "train.seed=3") == 0


def test_a_video_that_has_changed_is_refused_as_planned_and_in_the_log(small, capsys, caplog):
    before = set((small / "logs").iterdir())
    write_video(small / "videos" / "one.mp4", [100 * i for i in range(FRAMES + 10)], rate=10)
    plan = planned(small, capsys)
    assert plan["extract"].startswith("will be refused: videos/one.mp4 has changed since features was made from it; ")
    assert plan["pack"].startswith("done already")
    assert again(small) == 2
    assert "has changed since" in caplog.text
    [log] = set((small / "logs").iterdir()) - before
    assert "one.mp4 has changed since" in log.read_text()
