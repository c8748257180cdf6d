"""The recipes that come with the package are whole, and say what is true."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from importlib import resources

import pytest
from conftest import write_video

from excl.workflows import demo
from excl.workflows.cli import main
from excl.workflows.run import Config, bundled, check, load_recipe, parse, parse_setting
from excl.workflows.steps import STEPS


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_pass_their_check(name, tmp_path):
    _, root, tables = load_recipe(Config(recipe=name))
    assert str(root) == name
    with contextlib.chdir(tmp_path):
        configs, problems = parse(name, tables)
    assert all("not there, and no earlier step makes it" in problem for problem in problems)  # videos and annotations
    assert bool(problems) == (name != "demo")
    assert list(configs) == [step for step in STEPS if step in tables]


def test_the_demo_asks_for_what_happens_in_its_video():
    """The moments in the recipe's comments are those of the plan."""
    _, _, tables = load_recipe(Config(recipe="demo"))
    configs = check("demo", tables)
    index = int(configs["localize"].video.stem.removeprefix("demo_"))
    planned = demo.plan_video(index, configs["demo"]).queries()
    assert planned[0]["split"] == configs["evaluate"].split == "test"
    text = (resources.files("excl.workflows") / "recipes" / "demo.toml").read_text(encoding="utf-8")
    commented = re.findall(r'"(the [^"]*)", *# *([\d.]+) to +([\d.]+) s', text)
    assert [query for query, _, _ in commented] == list(configs["localize"].query)
    moments = {row["query"]: (row["start_s"], row["end_s"]) for row in planned}
    for query, start_s, end_s in commented:
        assert (float(start_s), float(end_s)) == tuple(round(x, 1) for x in moments[query])


def test_the_demo_is_as_large_as_promised():
    configs = check("demo", load_recipe(Config(recipe="demo"))[2])
    made = configs["demo"]
    assert made.num_train + made.num_val + made.num_test >= 60
    assert 20 <= made.min_seconds <= made.max_seconds <= 40
    for stage in ("decode", "extract"):
        assert dataclasses.asdict(configs[stage])["crop"] == demo.INNER


# Settings in place of those of the recipe, some of the steps, what is made again


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("extract.stride=4", (["extract", "stride"], 4)),
        ("train.model.dropout=0.3", (["train", "model", "dropout"], 0.3)),
        ("extract.weights=random:0", (["extract", "weights"], "random:0")),
        ('tokenise.test=["val_1", "val_2"]', (["tokenise", "test"], ["val_1", "val_2"])),
        ("tokenise.glove=a=b", (["tokenise", "glove"], "a=b")),
    ],
)
def test_settings_on_the_command_line(text, wanted):
    assert parse_setting(text) == wanted


@pytest.mark.parametrize("text", ["stride=4", "extract.stride", "extrct.stride=4", ""])
def test_settings_that_are_none_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["run", "demo", "--set", text])
    assert "wanted STEP.KEY=VALUE" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


def test_one_value_stands_for_a_list():
    config = Config(recipe="activitynet_captions", set=("tokenise.test=val_1+val_2", "train.model.variant=reg-1-b"))
    _, _, tables = load_recipe(config)
    assert tables["tokenise"]["test"] == ["val_1+val_2"]
    assert tables["train"]["model"] == {"variant": "reg-1-b"}


@pytest.fixture
def small(tmp_path):
    """A recipe of five steps on three videos, done once."""
    (tmp_path / "videos").mkdir()
    rows = []
    for name in ("one", "two", "three"):
        write_video(tmp_path / "videos" / f"{name}.mp4", [100 * i for i in range(60)], rate=10)
        rows.append({"video_id": name, "query": "it counts", "start_s": 0, "end_s": 3})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vectors.txt").write_text("it 0.1 0.2\n")
    sizes = "text_hidden = 8, video_hidden = 8, predictor_hidden = 8, mlp_hidden = 8"
    (tmp_path / "r.toml").write_text(f"""
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
        epochs = 1
        model = {{{sizes}}}
        out = "run"
        [evaluate]
        run = "run"
        store = "store"
        split = "val"
        out = "evaluation"
        """)
    assert main(["run", str(tmp_path / "r.toml"), "--until", "tokenise"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["features", "queries", "videos"]
    assert main(["run", str(tmp_path / "r.toml")]) == 0
    return tmp_path


def made(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    ("setting", "again"),
    [
        ("train.model.variant=reg-1-a", {"run", "evaluation"}),
        ("tokenise.min_count=2", {"queries", "store", "run", "evaluation"}),
        ("extract.stride=4", {"features", "store", "run", "evaluation"}),
    ],
)
def test_another_setting_makes_again_what_depends_on_it_and_keeps_the_old(small, caplog, setting, again):
    before = made(small)
    assert main(["run", str(small / "r.toml")]) == 0
    assert made(small) == before  # nothing to do
    assert main(["run", str(small / "r.toml"), "--set", setting]) == 0
    now = made(small)
    assert set(now) == {*before, *(f"{name}.old-1" for name in again)}
    for name, inode in before.items():
        assert now[f"{name}.old-1" if name in again else name] == inode
    assert "is kept as" in caplog.text


def test_one_step_alone(small):
    before = made(small)
    assert main(["run", str(small / "r.toml"), "--only", "train", "--set", "train.seed=1"]) == 0
    assert set(made(small)) == {*before, "run.old-1"}
    assert main(["run", str(small / "r.toml"), "--only", "decode"]) == 2
