"""The recipes that come with the package are whole, and say what is true."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from importlib import resources

import pytest

from excl.datasets.annotations import activitynet_captions, charades_sta, tacos
from excl.datasets.annotations.cleaning import find_flaws
from excl.datasets.annotations.durations import read_durations
from excl.workflows import demo
from excl.workflows.cli import main
from excl.workflows.runner.recipe import bundled, load_recipe, parse, parse_setting
from excl.workflows.steps import STEPS


def of_recipe(name):
    return [(name, variant) for variant in (None, *load_recipe(name).variants)]


@pytest.mark.parametrize(("name", "variant"), [pair for name in bundled() for pair in of_recipe(name)])
def test_bundled_recipes_pass_their_check(name, variant, tmp_path):
    recipe = load_recipe(name, variant=variant)
    assert str(recipe.root) == name
    with contextlib.chdir(tmp_path):
        configs, problems = parse(name, recipe.tables)
    assert all("not there, and no earlier step makes it" in problem for problem in problems)  # videos and annotations
    assert bool(problems) == (name != "demo")
    assert list(configs) == [step for step in STEPS if step in recipe.tables]


@pytest.mark.parametrize("name", ["charades_sta", "tacos", "activitynet_captions"])
def test_bundled_recipes_have_variants_for_both_weights_side_by_side(name):
    assert load_recipe(name).variants == ("kinetics", "charades")
    plain, kinetics, charades = (load_recipe(name, variant=v).tables for v in (None, "kinetics", "charades"))
    assert kinetics == plain
    assert (plain["extract"]["weights"], charades["extract"]["weights"]) == ("kinetics", "charades")
    outs = {step: table["out"] for step, table in charades.items()}
    assert outs == {"extract": "features-charades", "tokenise": "queries", "pack": "store-charades",
                    "train": "run-charades", "evaluate": "evaluation-charades"}  # fmt: skip
    assert charades["pack"]["features"] == outs["extract"]
    assert charades["evaluate"]["run"] == outs["train"]
    assert charades["train"]["store"] == charades["evaluate"]["store"] == outs["pack"]


def test_the_demo_asks_for_what_happens_in_its_video():
    """The moments in the recipe's comments are those of the plan."""
    tables = load_recipe("demo").tables
    configs = parse("demo", tables)[0]
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
    configs = parse("demo", load_recipe("demo").tables)[0]
    made = configs["demo"]
    assert made.num_train + made.num_val + made.num_test >= 60
    assert 20 <= made.min_seconds <= made.max_seconds <= 40
    for stage in ("decode", "extract"):
        assert dataclasses.asdict(configs[stage])["crop"] == demo.INNER


# What their heads state


def about(name):
    return " ".join(load_recipe(name).about.split())


def counted(parts):
    """Queries, and their videos with how long they are, of every part."""
    return [len(moments) for moments in parts], [{m.video_id: m.duration_s for m in moments} for moments in parts]


def hours(*parts):
    return sum({video_id: seconds for part in parts for video_id, seconds in part.items()}.values()) / 3600


def of_three(queries, videos):
    numbers = [f"{n:,}" for n in (*queries, *map(len, videos))]
    return "{}, {} and {} queries of {}, {} and {} videos".format(*numbers)


def test_what_the_head_of_charades_sta_states(shared):
    folder, stated = shared / "annotations" / "charades", about("charades_sta")
    lengths = [folder / f"Charades_v1_{part}.csv" for part in ("train", "test")]
    parts = [
        charades_sta.load(folder / f"charades_sta_{part}.txt", split=part, durations=lengths) for part in ("train", "test")
    ]
    queries, videos = counted(parts)
    all_videos = read_durations(lengths)
    assert f"{queries[0]:,} and {queries[1]:,} lines" in stated
    assert f"{len(all_videos):,} .mp4" in stated
    assert f"of which {len(videos[0] | videos[1]):,} have queries" in stated
    assert f"{hours(all_videos):.0f} hours of video ({hours(*videos):.0f} with queries)" in stated


def test_what_the_head_of_tacos_states(shared):
    parts = [tacos.load(shared / "annotations" / "tacos" / f"{part}.json", split=part) for part in ("train", "val", "test")]
    queries, videos = counted(parts)
    stated = about("tacos")
    assert of_three(queries, videos) in stated
    assert f"the {len(videos[0] | videos[1] | videos[2])} videos" in stated
    assert f"{hours(*videos):.0f} hours of video" in stated
    duplicates = sum(len(find_flaws(moments)["duplicates"]) for moments in parts)
    assert f"{duplicates:,} queries are exact duplicates" in stated
    assert_sizes(stated, hours(*videos), count=2)


def test_what_the_head_of_activitynet_captions_states(shared):
    names = ("train", "val_1", "val_2")
    parts = [activitynet_captions.load(shared / "annotations" / "activitynet" / f"{n}.json", split=n) for n in names]
    queries, videos = counted(parts)
    stated = about("activitynet_captions")
    assert of_three(queries, videos) in stated
    assert videos[2].keys() < videos[1].keys()  # "val_2 is the videos of val_1"
    assert f"{hours(*videos):.0f} hours of video" in stated
    assert_sizes(stated, hours(*videos), count=2)
    [size, rate] = re.findall(r"(\d+) GB at the (\d+) MB an hour of Charades", stated)[0]
    assert float(size) == pytest.approx(hours(*videos) * float(rate) / 1000, rel=0.03)
    [charades] = re.findall(r"about (\d+) GB.*?(\d+) hours of video", about("charades_sta"))
    assert float(rate) == pytest.approx(1000 * float(charades[0]) / float(charades[1]), rel=0.03)


def assert_sizes(stated, hours_of_video, *, count):
    """Gigabytes at a rate are what the hours make of them."""
    found = re.findall(r"([\d.]+) GB at (\d+) Mbit/s", stated)
    assert len(found) == count
    for size, rate in found:
        assert float(size) == pytest.approx(hours_of_video * 3600 * float(rate) / 8 / 1000, rel=0.03)


# Settings in place of those of the recipe


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
    assert "expected STEP.KEY=VALUE" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


def test_one_value_stands_for_a_list():
    settings = ("tokenise.test=val_1+val_2", "train.model.variant=reg-1-b")
    tables = load_recipe("activitynet_captions", settings=settings).tables
    assert tables["tokenise"]["test"] == ["val_1+val_2"]
    assert tables["train"]["model"] == {"variant": "reg-1-b"}


def variants_of(tmp_path, text, variant):
    (tmp_path / "r.toml").write_text(text)
    return load_recipe(str(tmp_path / "r.toml"), variant=variant).tables


def test_a_variant_has_folders_of_its_own_for_what_it_changes_and_what_follows(tmp_path):
    text = """
        [demo]
        out = "data"
        [decode]
        videos = "data/videos"
        out = "frames"
        [tokenise]
        train = ["data/train.jsonl", "mine/data.jsonl"]
        glove = "vectors.txt"
        out = "queries"
        [train]
        store = ["one", "two"]
        out = "run"
        model = {dropout = 0.3, text_hidden = 8}
        [localize]
        run = "run"
        video = "data/videos/a.mp4"
        query = ["run", "data"]
        out = "answers"
        [variants.long.demo]
        min_seconds = 30
        [variants.wet]
        train = {model = {dropout = 0.5}}
        [variants.elsewhere]
        train = {epochs = 3, out = "other"}
        """
    long = variants_of(tmp_path, text, "long")
    assert long["demo"] == {"out": "data-long", "min_seconds": 30}
    assert long["decode"] == {"out": "frames-long", "videos": "data-long/videos"}
    assert long["tokenise"]["train"] == ["data-long/train.jsonl", "mine/data.jsonl"]
    assert long["train"]["out"] == "run"  # of two stores, which are no one's
    assert long["localize"] == {"run": "run", "video": "data-long/videos/a.mp4", "query": ["run", "data"],
                                "out": "answers-long"}  # fmt: skip
    wet = variants_of(tmp_path, text, "wet")
    assert wet["train"] == {"store": ["one", "two"], "out": "run-wet", "model": {"dropout": 0.5, "text_hidden": 8}}
    assert (wet["decode"]["out"], wet["localize"]["run"], wet["localize"]["query"][0]) == ("frames", "run-wet", "run")
    assert variants_of(tmp_path, text, "elsewhere")["train"]["out"] == "other"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[variants.x]\nextrct = {stride = 4}", r"\[variants.x\]: 'extrct': expected settings of steps"),
        ("[variants.x]\nextract = 4", r"\[variants.x\]: 'extract': expected settings of steps"),
        ("[variants]\nx = 4", "expected settings of steps"),
        ("variants = 4", "expected settings of steps"),
        ('[variants."a/b"]\nextract = {stride = 4}', "no name for a folder"),
        ("[variants.y]\nextract = {stride = 4}", "has no 'x'; it has y"),
        ("", "has no 'x'; it has none"),
    ],
)
def test_variants_that_are_none_are_refused(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        variants_of(tmp_path, table, "x")


def test_check_takes_a_variant_and_settings(tmp_path, capsys):
    assert (
        main(["check", "charades_sta", "--root", str(tmp_path), "--variant", "charades", "--set", "pack.shard_videos=0"])
        == 3
    )
    shown = capsys.readouterr().out
    assert "weights charades: not here yet" in shown
    assert "[pack]: shard_videos: Input should be greater than 0" in shown
