"""A data set of one's own: `init` and `check`, and from there to a trained model by the README's words."""

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from shared_fixtures import write_video

from excl.pipeline.queries import published_glove
from excl.workflows.cli import main
from excl.workflows.runner import output_folders
from excl.workflows.server import annotate, serve

WORDS = "a the person number counts up stays dark bright ."


pytestmark = pytest.mark.usefixtures("one_thread", "forked_decoders")


@pytest.fixture
def own(tmp_path):
    """A folder with three videos of 8, 9 and 10 seconds, begun by `init`, and word vectors beside it."""
    (tmp_path / "videos").mkdir()
    for name, seconds in (("one", 8), ("two", 9), ("three", 10)):
        write_video(tmp_path / "videos" / f"{name}.mp4", [100 * i for i in range(seconds * 10)], rate=10)
    (tmp_path / "vectors.txt").write_text("".join(f"{word} 0.{i} 0.{9 - i} 0.5\n" for i, word in enumerate(WORDS.split())))
    assert main(["init", str(tmp_path / "mine"), "--videos", str(tmp_path / "videos")]) == 0
    return tmp_path / "mine"


def fill_in(own, *, glove="../vectors.txt", weights="random:0"):
    """What a user writes: five lines of annotations, and which files to use."""
    rows = [("one", 0, 4), ("one", 4, 8), ("two", 1, 5), ("three", 0, 5), ("three", 5, 10)]
    lines = [{"video_id": v, "query": "the number counts up.", "start_s": s, "end_s": e} for v, s, e in rows]
    (own / "annotations.jsonl").write_text("# my moments\n" + "".join(json.dumps(line) + "\n" for line in lines))
    recipe = (own / "recipe.toml").read_text()
    recipe = recipe.replace('weights = "kinetics"', f'weights = "{weights}"').replace('glove = "6B"', f'glove = "{glove}"')
    small = 'out = "features"\nshort_side = 64\ncrop = 64'
    toy = "epochs = 1\nmodel = {text_hidden = 8, video_hidden = 8, predictor_hidden = 8, mlp_hidden = 8}\n"
    recipe = recipe.replace('out = "features"', small, 1).replace("[train]", "[train]\n" + toy)
    (own / "recipe.toml").write_text(recipe)


def test_the_commands_of_the_readme_run_in_order(own, capsys, monkeypatch):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"## A data set of your own\n\n```\n(.*?)```", readme, re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("excl ")]
    assert [c[1] for c in commands] == ["init", "annotate", "check", "run", "localize", "serve", "status", "inspect"]
    served = []
    for module in (annotate, serve):  # all but waiting for requests
        monkeypatch.setattr(module, "run_page", lambda *_, what: served.append(what))
    shutil.rmtree(own)
    monkeypatch.chdir(own.parent)
    Path("new").mkdir()
    shutil.copy("videos/one.mp4", "new/trip.mp4")
    shown = {}
    for _, *arguments in commands:
        assert main(arguments) == 0, arguments
        shown[arguments[0]] = capsys.readouterr().out
        if arguments[0] == "init":
            fill_in(own)  # weights and word vectors that need no download, and moments
    assert "nothing stands in the way" in shown["check"]
    assert "a dog jumps into the lake" in shown["localize"]
    assert "3 of 3 videos" in shown["status"] or "3 videos" in shown["status"]
    assert "random:0" in shown["inspect"]
    assert len(served) == 2


def test_init_writes_a_line_for_every_video_and_a_recipe_that_is_whole(own, capsys):
    text = (own / "annotations.jsonl").read_text()
    rows = [json.loads(line[2:]) for line in text.splitlines() if line.startswith("# {")]
    assert [(row["video_id"], row["duration_s"]) for row in rows] == [("one", 8.0), ("three", 10.0), ("two", 9.0)]
    assert all(line.startswith("#") for line in text.splitlines())
    assert str(own.parent / "videos") in (own / "recipe.toml").read_text()
    assert main(["check", str(own / "recipe.toml")]) == 3
    shown = capsys.readouterr().out
    assert "no moments of the split train" in shown  # nothing is annotated yet
    assert (
        "weights kinetics: not here yet; `excl run` downloads it before all else (or `excl weights fetch kinetics" in shown
    )
    assert "word vectors 6B: not here yet" in shown
    assert "; still to be downloaded: weights kinetics, word vectors 6B" in shown


def test_a_download_that_fails_ends_a_run_before_its_first_step(own, monkeypatch, caplog):
    fill_in(own)
    monkeypatch.setattr(published_glove, "BASE_URL", "http://127.0.0.1:9/")
    assert main(["run", str(own / "recipe.toml"), "--set", "tokenise.glove=6B"]) == 1
    assert "glove.6B.zip: cannot be downloaded" in caplog.text
    assert "vectors.txt, which `excl demo DIR` writes" in caplog.text
    assert not (own / "features").exists()


def test_init_does_not_overwrite(own, caplog):
    before = (own / "recipe.toml").read_text()
    assert main(["init", str(own), "--videos", str(own.parent / "videos")]) == 2
    assert "recipe.toml: exists already" in caplog.text
    assert (own / "recipe.toml").read_text() == before
    assert main(["init", str(own.parent / "other"), "--videos", str(own.parent / "nothing")]) == 1
    assert not (own.parent / "other").exists()


def test_from_init_to_a_trained_model(own, capsys):
    fill_in(own)
    assert main(["check", str(own / "recipe.toml")]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 videos can be read, 0.01 hours" in shown
    assert "5 of 5 queries have their video" in shown
    assert "3 numbers a word, for 5 of 5 words of the training split" in shown
    assert "about 135 frames, 15 rows, 1 shards" in shown  # 40, 45 and 50 frames: 4, 5 and 6 rows
    assert "nothing stands in the way" in shown
    assert sorted(path.name for path in own.iterdir()) == ["annotations.jsonl", "recipe.toml"]  # nothing was written
    assert main(["run", str(own / "recipe.toml")]) == 0
    assert "split val (10% of the videos of rows of annotations.jsonl, by seed 0)" in capsys.readouterr().out
    video = own.parent / "videos" / "one.mp4"
    assert main(["localize", "--run", str(own / "run"), "--video", str(video), "--query", "a number counts", "--out",
                 str(own / "answers")]) == 0  # fmt: skip
    assert re.search(r"\d+\.\d\d s to \d+\.\d\d s", capsys.readouterr().out)


def no_video(own):
    (own.parent / "videos" / "one.mp4").write_bytes(b"no video")


def two_of_an_id(own):
    shutil.copy(own.parent / "videos" / "one.mp4", own.parent / "videos" / "one.mkv")


def no_vectors(own):
    (own.parent / "vectors.txt").write_text("not vectors at all\n")


def no_such_file(own):
    recipe = (own / "recipe.toml").read_text()
    (own / "recipe.toml").write_text(recipe.replace("../vectors.txt", "nowhere.txt").replace("random:0", "nowhere.pt"))


def misspelt(own):
    (own / "recipe.toml").write_text("[extract]\nstrid = 4\n")


def no_json(own):
    (own / "annotations.jsonl").write_text("{oops\n")


def other_ids(own):
    text = (own / "annotations.jsonl").read_text()
    (own / "annotations.jsonl").write_text(text.replace('"video_id": "', '"video_id": "v_'))


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (no_video, ["PROBLEM  .*one.mp4", "2 of 3 videos can be read"]),
        (two_of_an_id, ["PROBLEM  .*share the id 'one'"]),
        (no_vectors, [r"PROBLEM  .*vectors\.txt:1"]),
        (no_such_file, [r"PROBLEM  .*nowhere\.txt", r"PROBLEM  .*nowhere\.pt"]),
        (misspelt, ["PROBLEM  .*out: missing", r"PROBLEM  recipe\.toml: \[extract\]: strid: unknown"]),
        (no_json, [r"PROBLEM  annotations\.jsonl:1"]),
        (
            other_ids,
            ["PROBLEM  0 of 5 queries have their video; 3 videos are not there.*3 would match without the prefix v_"],
        ),
    ],
)
def test_check_finds_what_would_go_wrong(own, capsys, spoil, messages):
    fill_in(own)
    spoil(own)
    assert main(["check", str(own / "recipe.toml")]) == 3
    shown = capsys.readouterr().out
    for message in messages:
        assert re.search(message, shown)


def test_check_tells_videos_of_another_length_and_those_without_queries(own, capsys):
    fill_in(own)
    (own / "annotations.jsonl").write_text(
        '{"video_id": "one", "query": "x", "start_s": 0, "end_s": 1, "duration_s": 30}\n'
        '{"video_id": "two", "query": "x", "start_s": 0, "end_s": 1, "duration_s": 9.4}\n'
    )
    assert main(["check", str(own / "recipe.toml")]) == 0
    shown = capsys.readouterr().out
    assert "1 videos are not as long as annotated (more than 1 s): annotations.jsonl:1" in shown
    assert "1 videos have no queries" in shown


def test_check_knows_what_later_steps_will_ask_for(own, capsys):
    fill_in(own)
    recipe = (own / "recipe.toml").read_text()
    (own / "recipe.toml").write_text(recipe.replace('split = "val"', 'split = "test"'))
    assert main(["check", str(own / "recipe.toml")]) == 3
    shown = capsys.readouterr().out
    assert "[evaluate] needs moments of the split test, and there are none; there are train, val" in shown
    (own / "recipe.toml").write_text(recipe.replace("[pack]", '[pack]\nmissing_video = "fail"\nother_duration = "fail"'))
    (own / "annotations.jsonl").write_text(
        '{"video_id": "one", "query": "x", "start_s": 0, "end_s": 1, "duration_s": 30}\n'
        '{"video_id": "two", "query": "x", "start_s": 0, "end_s": 40}\n'
        '{"video_id": "gone", "query": "x", "start_s": 0, "end_s": 1}\n'
    )
    assert main(["check", str(own / "recipe.toml")]) == 3
    shown = capsys.readouterr().out
    assert "PROBLEM  2 of 3 queries have their video" in shown
    assert "PROBLEM  1 videos are not as long as annotated" in shown
    assert "note     1 moments reach beyond the end of their video's file (clip): annotations.jsonl:2" in shown


def test_check_says_when_there_is_no_room(own, capsys, monkeypatch):
    fill_in(own)
    monkeypatch.setattr(output_folders.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert main(["check", str(own / "recipe.toml")]) == 3
    assert "PROBLEM  features: about" in capsys.readouterr().out


def test_the_demo_is_checked_though_its_videos_are_still_to_be_made(capsys, tmp_path):
    assert main(["check", "demo", "--root", str(tmp_path)]) == 0
    assert "made by the recipe" in capsys.readouterr().out
