"""The front door: what `import excl` offers, and the examples of README and docs, run from the Markdown itself."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from shared_fixtures import write_video

import excl
from excl.datasets.video.errors import VideoError
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.frame_store import FrameStore
from excl.pipeline.store.training_store import TrainingStore
from excl.workflows.steps import COMMANDS

pytestmark = pytest.mark.usefixtures("forked_decoders")
ROOT = Path(__file__).resolve().parents[2]
IDS = ["v_GGSY1Qvo990", "v_ZNVhz7ctTq0", "v_val", "v_test"]
COMMAND_FUNCTIONS = ["decode", "extract", "tokenise", "pack", "train", "evaluate", "localize", "score", "compare"]
SMALL = {  # what an example downloads or takes long for, and what stands for it
    'weights="kinetics"': 'weights="random:0", short_side=32, crop=32',
    '"6B"': '"vectors.txt"',
    "epochs=30": "epochs=1",
    "shards/00000-….h5": "shards/SHARD",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working folder with what the examples read: videos, annotations, word vectors."""
    (tmp_path / "videos").mkdir()
    for path in (*(tmp_path / "videos" / f"{name}.mp4" for name in IDS), tmp_path / "new_video.mp4", tmp_path / "video.mp4"):
        write_video(path, [i * 40 for i in range(60)], rate=25, width=64, height=48)
    splits = ["train", "train", "val", "test"]
    rows = [{"video_id": name, "query": "a dog jumps", "start_s": 0.2, "end_s": 2, "split": split}
            for name, split in zip(IDS, splits, strict=True)]  # fmt: skip
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vectors.txt").write_text("".join(f"{word} 0.1 0.2 {n}.5\n" for n, word in enumerate(["a", "dog", "jumps"])))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples(name):
    """The Python examples of a Markdown file, made small."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    for text, small in SMALL.items():
        blocks = [block.replace(text, small) for block in blocks]
    return blocks


def prepare(folder):
    """What an example takes as given: a folder of frames, the public file of weights, a batch of clips."""
    excl.decode(videos=folder / "videos", out=folder / "frames", crop=32, short_side=32)
    torch.save(excl.I3D(num_classes=400).state_dict(), folder / "rgb_imagenet.pt")
    return torch.zeros(1, 3, 16, 224, 224)


def test_the_examples_of_readme_and_docs_run(data):
    space = {"x": prepare(data)}
    for block in examples("README.md"):
        exec(block, space)
    assert space["video"].features.shape == (1, 1024)
    assert space["metrics"]["split"] == "test"
    shard = next((data / "features" / "shards").glob("*.h5")).name
    for name in ("docs/reference/python.md", "docs/store.md", "docs/decoding.md", "docs/pages.md"):
        for block in examples(name):
            exec(block.replace("SHARD", shard), space)
    assert space["network"].eval().features(space["x"]).shape == (1, 1, 1024)
    assert space["rows"].shape[1] == 1024
    assert space["batch"].shape == (2, 1, 1024)
    assert space["chunk"].frames.shape[1:] == (224, 224, 3)


def test_the_examples_run_in_a_notebook_with_progress_and_every_message_once(data):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(block) for block in examples("README.md")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        notebook, timeout=600, iopub_timeout=600, kernel_name="python3", resources={"metadata": {"path": str(data)}}
    ).execute()
    all_outputs = [output for cell in notebook.cells for output in cell["outputs"]]
    displays = [output for output in all_outputs if output["output_type"] == "display_data"]
    views = [re.sub(r"\x1b\[[\d;]*m", "", output["data"]["text/plain"]) for output in displays]  # colours, if TERM has some
    outputs = [output for output in all_outputs if output["output_type"] == "stream"]
    shown = "".join(output["text"] for output in outputs if output["name"] == "stderr")
    lines = re.split(r"[\r\n]+", shown)
    [warned] = {line for line in lines if "RANDOM weights" in line and "random:0" in line}
    assert warned.startswith("warning: ")
    assert any(re.search(r"extract .* 100 %\s+4 of 4 videos, ", view) for view in views)
    assert len([line for line in lines if line.startswith("train: 1 epochs, the best is number 1")]) == 1
    assert re.search(
        r"^[\d.]+ [\d.]+ [\d.]+ a dog jumps$", "".join(o["text"] for o in outputs if o["name"] == "stdout"), re.M
    )


def test_importing_excl_imports_nothing_and_offers_what_type_checkers_see():
    code = "import sys; before = set(sys.modules); import excl; print(sorted(set(sys.modules) - before))"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {module.split(".")[0] for module in ast.literal_eval(new)} <= {"excl"} | sys.stdlib_module_names
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(excl.__all__) == set(seen)
    assert {*excl.__all__, "__version__"} == set(dir(excl))
    for name, module in seen.items():
        assert excl._MODULES.get(name, "excl.workflows.api") == module
        assert getattr(excl, name).__module__.startswith("excl.")
    with pytest.raises(AttributeError, match="no attribute 'extrat'"):
        excl.extrat  # noqa: B018


@pytest.mark.parametrize("name", COMMAND_FUNCTIONS)
def test_signature_and_help_of_a_function_are_those_of_its_command(name):
    function, config = getattr(excl, name), COMMANDS[name].config
    parameters = inspect.signature(function).parameters
    for field in config.__dataclass_fields__:
        flat = field in ("reading", "running") or (field in ("json", "show", "strict"))
        assert (field in parameters) is not flat
    assert inspect.cleandoc(config.__doc__).splitlines()[0] in function.__doc__
    for parameter in parameters:
        assert re.search(rf"^{parameter}( = .*|: .*)?\n    \S", function.__doc__, re.M)


def test_help_has_nested_settings_too():
    assert "epochs = 30\n    At most so many passes" in excl.train.__doc__
    assert "model: a dict or ExCLConfig with" in excl.train.__doc__
    assert "    variant = 'clf-2-b'\n" in excl.train.__doc__
    assert "timeout_s = 60.0\n" in excl.extract.__doc__
    assert "in place of `videos`" in excl.extract.__doc__
    assert "weights = None (default: the preset's)\n" in excl.video_features.__doc__
    assert not {"out", "videos", "executor"} & set(inspect.signature(excl.video_features).parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: excl.extract(videos="v", out="o", vidoes="w"),
            "extract: there is no setting 'vidoes'; did you mean 'videos'?",
        ),
        (lambda: excl.extract(videos="v"), "extract: out: missing, and it has no default"),
        (
            lambda: excl.extract(out="o", frames="f", crop=3),
            "extract: crop: Input should be greater than or equal to 32 (given: 3)",
        ),
        (lambda: excl.extract(out="o"), "extract: give either --videos or --frames"),
        (lambda: excl.extract("videos/"), "extract: give settings by name, as in extract(out=…)"),
        (
            lambda: excl.decode(videos="v", out="o", timeout_s=-1),
            "decode: reading.timeout_s: Input should be greater than 0",
        ),
        (lambda: excl.train(store="s", out="o", model={"variant": "x"}), "train: model.variant: Input should be"),
        (lambda: excl.video_features("v.mp4", out="o"), "video_features: there is no setting 'out'"),
        (lambda: excl.evaluate("run", split="all"), "evaluate: split: Input should be 'train', 'val' or 'test'"),
    ],
)
def test_wrong_settings_are_a_value_error_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_video_has_the_features_that_extract_gives_it(data, caplog):
    settings = {"weights": "random:0", "short_side": 32, "crop": np.int64(32), "device": "cpu"}
    alone = excl.video_features("new_video.mp4", **settings)
    assert "RANDOM" in caplog.text
    assert sorted(path.name for path in data.iterdir()) == sorted(
        ["videos", "new_video.mp4", "video.mp4", "annotations.jsonl", "vectors.txt"]
    )
    store = excl.extract(videos=data / "new_video.mp4", out="one", decoders=1, **settings)
    np.testing.assert_array_equal(alone.features, store["new_video"].features)
    np.testing.assert_array_equal(alone.start_s, store["new_video"].start_s)
    np.testing.assert_array_equal(alone.end_s, store["new_video"].end_s)
    with pytest.raises(VideoError, match=r"nowhere\.mp4: cannot be opened"):
        excl.video_features("nowhere.mp4", **settings)
    (data / "bad.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        excl.video_features("bad.mp4", **settings)


def test_open_store_opens_each_kind(data):
    frames = excl.decode(videos="videos", out="frames", crop=32, short_side=32)
    features = excl.extract(frames="frames", out="features", weights="random:0", crop=32, short_side=32)
    excl.tokenise(dataset="annotations.jsonl", glove="vectors.txt", out="queries")
    store = excl.pack(features="features", queries="queries", out="store")
    assert [type(each) for each in (frames, features, store)] == [FrameStore, FeatureStore, TrainingStore]
    for folder, kind in (("frames", FrameStore), ("features", FeatureStore), (data / "store", TrainingStore)):
        assert type(excl.open_store(folder)) is kind
    with pytest.raises(ValueError, match="nowhere: no manifest"):
        excl.open_store("nowhere")


LOGGING = """
import logging, sys, excl
if len(sys.argv) > 1:
    logging.basicConfig(level=sys.argv[1], format="mine: %(message)s")
excl.tokenise(dataset="annotations.jsonl", glove="vectors.txt", out="queries")
excl.extract(videos="videos", out="features", weights="random:0", crop=32, short_side=32)
excl.pack(features="features", queries="queries", out="store")
assert bool(logging.getLogger().handlers) == (len(sys.argv) > 1)
"""


@pytest.mark.parametrize(
    ("arguments", "info", "warning"),
    [([], "test: 1 of 1 queries", "warning: random:0"), (["INFO"], "mine: test: 1 of 1 queries", "mine: random:0"),
     (["WARNING"], None, "mine: random:0")],
)  # fmt: skip
def test_messages_show_once_and_as_the_program_has_configured_them(data, arguments, info, warning):
    process = commands.run(
        [sys.executable, "-c", LOGGING, *arguments], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    lines = process.stderr.splitlines()
    assert len([line for line in lines if "test: 1 of 1 queries" in line]) == (info is not None)
    assert info is None or any(line.startswith(info) for line in lines)
    assert any(line.startswith(warning) for line in lines)
    assert logging.getLogger("excl").level == logging.NOTSET
