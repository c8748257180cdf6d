"""The recipes that come with the package are whole, and say what is true."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from importlib import resources

import pytest

from excl.workflows import demo
from excl.workflows.run import Config, bundled, check, load_recipe
from excl.workflows.steps import STEPS


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_pass_their_check(name, tmp_path):
    _, root, tables = load_recipe(Config(recipe=name))
    assert str(root) == name
    with contextlib.chdir(tmp_path):
        configs = check(name, tables)
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
