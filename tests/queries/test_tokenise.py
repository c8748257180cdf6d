"""The stage tokenise through the command: reports on the official files, splits, policies, hostile ids, any query."""

import contextlib
import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.datasets.parsing import one_line
from excl.datasets.text.vocabulary import tokenise
from excl.models.i3d.row_layout import Continuous
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.pack import match_hint
from excl.pipeline.queries import annotation_sources
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.pipeline.store.training_store import TrainingStore
from excl.workflows.cli import main

ROW = {"video_id": "v", "query": "The cat jumps.", "start_s": 1.0, "end_s": 4.0}
RECIPE = {"fps": 5.0, "dtype": "float16", "weights": {"source": "random:0", "sha256": "?", "random": True}}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("the 0.1 0.2\ncat 0.3 0.4\n. 0.5 0.6\n")
    return path


def features(folder, video_ids, *, duration_s=16.0):
    start_s, end_s = Continuous().row_times(80, fps=5.0, duration_s=16.0)
    values = np.ones((len(start_s), 8), np.float16)
    videos = [VideoFeatures(v, values, start_s, end_s, {"duration_s": duration_s}) for v in video_ids]
    with Manifest.open(folder, stage="extract", identity=RECIPE, code_version=1) as manifest:
        write_shard(folder / "all.h5", videos, recipe=RECIPE)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": list(video_ids)})
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "moments.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


# The report


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["charades-sta", "charades"],
            [
                "train: 12,408 rows, 5,338 videos (as published); moments of 8.31 ± 3.67 s",
                "4 start not before the end (drop): charades_sta_train.txt:8252 (LEOL6 8-7 s)",
                "1,805 beyond the video's duration, by 1.54 s at most (clip)",
                "test: 3,720 rows, 1,334 videos (as published)",
                "562 beyond the video's duration, by 1.5 s at most (clip)",
                "val is 10% of the videos of charades_sta_train.txt, by seed 0",
                "the paper states 3,720",
            ],
        ),
        (
            ["activitynet-captions", "activitynet", "--val", "val_2", "--test", "val_1"],
            [
                "train: 37,421 rows, 10,009 videos (as published); moments of 35.46 ± 39.49 s",
                "4 start not before the end (drop)",
                "261 beyond the video's duration, by 0.01 s at most (clip)",
                "val: 17,031 rows, 4,885 videos (as published)",
                "111 beyond",
                "test: 17,505 rows, 4,917 videos (as published)",
                "134 beyond",
                "4,885 videos are both in val and in test",
                "the paper states 10,000",
            ],
        ),
        (
            ["activitynet-captions", "activitynet", "--test", "val_1+val_2", "--tokeniser", "whitespace"],
            ["test is val_1.json + val_2.json", "test: 34,536 rows, 4,917 videos (as published)"],
        ),
        (
            ["tacos", "tacos"],
            [
                "train: 9,790 rows, 75 videos (as published); moments of 23.34 ± 38.98 s",
                "43 beyond the video's duration, by 0.51 s at most (clip)",
                "1,201 exact duplicates of an earlier row (keep)",
                "val: 4,436 rows, 27 videos (as published)",
                "516 exact duplicates",
                "test: 4,001 rows, 25 videos (as published)",
                "5 beyond",
                "567 exact duplicates",
                "the paper states 1,438",
            ],
        ),
    ],
)
def test_the_report_on_the_official_files_gives_the_known_figures(shared, capsys, arguments, wanted):
    name, folder, *more = arguments
    command = ["tokenise", "--dataset", name, "--annotations", str(shared / "annotations" / folder), *more, "--report"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for text in wanted:
        assert text in shown


def test_a_report_names_what_differs_from_the_published_file_and_the_words_without_a_vector(tmp_path, capsys, vectors):
    folder = tmp_path / "captions"
    folder.mkdir()
    value = {"v": {"duration": 9, "timestamps": [[0, 5], [0, 6]], "sentences": ["The cat.", "The dog."]}}
    for name in ("train", "val_1"):
        (folder / f"{name}.json").write_text(json.dumps(value))
    arguments = ["--dataset", "activitynet-captions", "--annotations", str(folder), "--carve-val", "0"]
    assert main(["tokenise", *arguments, "--glove", str(vectors), "--report"]) == 0
    shown = capsys.readouterr().out
    assert "train: 2 (published: 37,421) rows, 1 (published: 10,009) videos" in shown
    assert "not in the vocabulary, or without a vector: 1 tokens in 1 queries, 1 words: dog" in shown
    assert "1 of 4 words have no vector in vectors.txt" in shown


# Which files are which split


def test_a_file_of_ones_own_names_its_splits_itself(tmp_path, vectors):
    own = write(tmp_path / "own.jsonl", ROW, {**ROW, "split": "test"}, {**ROW, "split": "val", "video_id": "w"})
    assert main(["tokenise", "--dataset", str(own), "--glove", str(vectors), "--out", str(tmp_path / "q")]) == 0
    assert [row["split"] for row in rows_of(tmp_path / "q")] == ["train", "test", "val"]
    about = Manifest.read(tmp_path / "q").records["complete"]["about"]
    assert about["splits"] == dict.fromkeys(("train", "val", "test"), "rows of own.jsonl")
    (tmp_path / "own.csv").write_text("video_id,query,start_s,end_s\na,The cat,1,2\nb,A dog,1,2\n")
    assert (
        main(["tokenise", "--dataset", str(tmp_path / "own.csv"), "--glove", str(vectors), "--out", str(tmp_path / "c")])
        == 0
    )
    assert sorted(row["split"] for row in rows_of(tmp_path / "c")) == ["train", "val"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "own.jsonl", "--train", "x.jsonl"], "own.jsonl names its splits itself"),
        (["--dataset", "captions"], "dataset: 'captions' is neither one of charades-sta"),
        (["--dataset", "jsonl"], "train: needed: the vocabulary comes from it"[:13]),
        (["--dataset", "tacos"], "train: needed or annotations, the folder with the official files"),
        (["--dataset", "jsonl", "--annotations", "x"], "annotations: only for charades-sta"),
        (["--dataset", "activitynet-captions", "--annotations", "x", "--test", "val_3"], "'val_3' is no part of"),
        (["--dataset", "tacos", "--train", "x", "--durations", "y"], "durations: used by charades-sta"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["tokenise", *arguments, "--report"])
    assert stopped.value.code == 2
    assert re.sub(r"[\s│]+", " ", message) in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


def test_glove_and_out_are_missed_unless_only_a_report_is_wanted(capsys):
    with pytest.raises(SystemExit):
        main(["tokenise", "--dataset", "own.jsonl"])
    assert "glove: missing; only --report goes without it" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "split": "dev"}, r"found the splits \['dev'\]; they are called train, val, test here"),
        ({**ROW, "split": "test"}, "no moments of the split train"),
    ],
)
def test_rows_of_other_splits_are_refused(tmp_path, caplog, row, message):
    assert main(["tokenise", "--dataset", str(write(tmp_path / "own.jsonl", row)), "--report"]) == 2
    assert re.search(message, caplog.text)


def test_a_query_id_is_that_of_one_query(tmp_path, caplog):
    own = write(tmp_path / "own.jsonl", {**ROW, "query_id": "q"}, {**ROW, "query_id": "q", "query": "Another."})
    assert main(["tokenise", "--dataset", str(own), "--report"]) == 2
    assert "own.jsonl:1 and own.jsonl:2 have the query_id 'q', but are not of one" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{folder}.jsonl"], "a folder; expected a file"),
        (["--dataset", "tacos", "--annotations", "{file}"], "is a file; expected the folder with train.json, val.json"),
        (["--dataset", "tacos", "--annotations", "{folder}.jsonl", "--test", "val+val"], "test: val+val has a part twice"),
    ],
)
def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path, capsys, caplog, arguments, message):
    (tmp_path / "folder.jsonl").mkdir()
    own = write(tmp_path / "file", ROW)
    filled = [text.format(folder=tmp_path / "folder", file=own) for text in arguments]
    with contextlib.suppress(SystemExit):  # as tyro ends
        assert main(["tokenise", *filled, "--report"]) == 2
    shown = capsys.readouterr().err + caplog.text
    assert message in re.sub(r"[\s│]+", " ", shown)


def test_a_validation_file_without_moments_is_not_replaced_by_a_part_of_train(tmp_path, caplog):
    train = write(tmp_path / "train.jsonl", ROW, {**ROW, "video_id": "w"})
    (tmp_path / "val.jsonl").write_text("# nothing yet\n")
    arguments = ["--dataset", "jsonl", "--train", str(train), "--val", str(tmp_path / "val.jsonl"), "--report"]
    assert main(["tokenise", *arguments]) == 2
    assert "val.jsonl: no moments of the split val" in caplog.text
    write(tmp_path / "val.jsonl", {**ROW, "query": " "})
    assert main(["tokenise", *arguments]) == 2
    assert "no moment of the split val can be used; the reason for the first: its query has no word" in caplog.text


def test_what_is_not_printable_reaches_no_terminal(tmp_path, capsys):
    own = write(tmp_path / "own.jsonl", ROW, {**ROW, "video_id": "a\nPROBLEM \x1b[31m", "start_s": 9.0})
    assert main(["tokenise", "--dataset", str(own), "--report", "--carve-val", "0"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "(a\\nPROBLEM \\x1b[31m 9-4 s)" in shown


def test_durations_of_charades_are_found_in_either_form(tmp_path):
    (tmp_path / "charades.json").write_text("{}")
    chosen = {"train": (), "val": (), "test": ()}
    assert annotation_sources.find_sources("charades-sta", tmp_path, chosen, ()).durations == (tmp_path / "charades.json",)
    for name in ("train", "test"):
        (tmp_path / f"Charades_v1_{name}.csv").write_text("id,length\n")
    assert len(annotation_sources.find_sources("charades-sta", tmp_path, chosen, ()).durations) == 2


# Policies


def test_policies_are_applied_recorded_and_go_on_into_the_store(tmp_path, vectors):
    bad = {**ROW, "start_s": 9.0, "end_s": 2.0}
    own = write(tmp_path / "own.jsonl", ROW, ROW, bad, {**ROW, "end_s": 99.0, "duration_s": 16.0})
    arguments = ["--dataset", str(own), "--glove", str(vectors), "--carve-val", "0", "--hygiene.unordered", "swap",
                 "--hygiene.duplicates", "drop", "--hygiene.beyond-video", "keep"]  # fmt: skip
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    assert [(r["start_s"], r["end_s"]) for r in rows_of(tmp_path / "q")] == [(1.0, 4.0), (2.0, 9.0), (1.0, 99.0)]
    report = json.loads((tmp_path / "q" / "report.json").read_text())
    assert report["annotations"]["train"]["flaws"]["unordered"] == {
        "rows": 1, "policy": "swap", "first": "own.jsonl:3 (v 9-2 s)"
    }  # fmt: skip
    assert report["cleaning"]["changed"] == [{"annotation_id": "train:own:3", "source": "own.jsonl:3", "how": "swapped"}]
    store = features(tmp_path / "f", ["v"])
    assert main(["pack", "--features", str(store), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]) == 0
    assert TrainingStore(tmp_path / "s").about_queries == {
        "dataset": "jsonl",
        "splits": {"train": "rows of own.jsonl"},
        "tokeniser": "nltk",
        "hygiene": {"unordered": "swap", "beyond_video": "keep", "duplicates": "drop", "unusable_query": "drop"},
        "unseen_words": "vector",
        "glove": {
            "file": "vectors.txt",
            "sha256": hashlib.sha256(vectors.read_bytes()).hexdigest(),
            "known": None,
            "member": None,
            "cased_fallback": False,
        },
    }
    assert main(["tokenise", *arguments[:-2], "--out", str(tmp_path / "q")]) == 2  # another policy is another folder


def test_a_policy_of_fail_stops_before_anything_is_written(tmp_path, vectors, caplog):
    own = write(tmp_path / "own.jsonl", ROW, {**ROW, "end_s": 0.5})
    arguments = ["--dataset", str(own), "--glove", str(vectors), "--hygiene.unordered", "fail"]
    assert main(["tokenise", *arguments, "--carve-val", "0", "--out", str(tmp_path / "q")]) == 2
    assert "own.jsonl:2 (v 1-0.5 s)" in caplog.text
    assert not (tmp_path / "q" / "moments.jsonl").exists()


def test_queries_without_a_word_and_very_long_ones_are_dropped_by_name(tmp_path, vectors, capsys):
    long = {**ROW, "query": "cat " * 2_500}
    own = write(tmp_path / "own.jsonl", ROW, {**ROW, "query": " "}, long, {**ROW, "query": "!?"})
    arguments = ["--dataset", str(own), "--glove", str(vectors), "--carve-val", "0", "--tokeniser", "words"]
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    assert [row["source"] for row in rows_of(tmp_path / "q")] == ["own.jsonl:1"]
    shown = capsys.readouterr().out
    assert "its query has no word: 2, own.jsonl:2, own.jsonl:4" in shown
    assert "its query has more than 2,000 characters: 1, own.jsonl:3" in shown
    assert main(["tokenise", *arguments, "--hygiene.unusable-query", "fail", "--out", str(tmp_path / "f")]) == 2


@pytest.fixture
def queries(tmp_path, vectors):
    """Queries of three videos, of which features hold two; one of these is 16 s long and said to be 30 s."""
    rows = [{**ROW, "video_id": "a", "duration_s": 16.0}, {**ROW, "video_id": "b", "duration_s": 30.0},
            {**ROW, "video_id": "b", "duration_s": 30.0, "start_s": 20.0, "end_s": 29.0},
            {**ROW, "video_id": "c", "duration_s": 9.0}]  # fmt: skip
    own = write(tmp_path / "own.jsonl", *rows)
    arguments = ["--dataset", str(own), "--glove", str(vectors), "--carve-val", "0", "--out", str(tmp_path / "q")]
    assert main(["tokenise", *arguments]) == 0
    return tmp_path / "q"


@pytest.mark.parametrize(
    ("policies", "kept"),
    [
        ([], [("a", 4.0), ("b", 4.0), ("b", 29.0), ("c", 4.0)]),
        (["--missing-video", "drop"], [("a", 4.0), ("b", 4.0), ("b", 29.0)]),
        (["--other-duration", "clip"], [("a", 4.0), ("b", 4.0), ("c", 4.0)]),
        (["--other-duration", "drop"], [("a", 4.0), ("c", 4.0)]),
        (["--other-duration", "drop", "--duration-tolerance-s", "14"], [("a", 4.0), ("b", 4.0), ("b", 29.0), ("c", 4.0)]),
    ],
)
def test_pack_says_what_becomes_of_queries_that_do_not_fit_the_videos(tmp_path, queries, caplog, policies, kept):
    store = features(tmp_path / "f", ["a", "b", "unused"])
    arguments = ["--features", str(store), "--queries", str(queries), "--out", str(tmp_path / "s")]
    assert main(["pack", *arguments, *policies]) == 0
    packed = TrainingStore(tmp_path / "s").queries("train")
    assert [(q.video_id, q.end_s) for q in packed] == kept
    coverage = json.loads((tmp_path / "s" / "coverage.json").read_text())
    assert coverage["videos_without_queries"] == (["unused"] if ("b", 4.0) in kept else ["b", "unused"])
    assert len(coverage["dropped"]) == 4 - len(kept) - (policies[:1] == ["--missing-video"])
    assert ("b (30.0 s, file 16.0 s)" in caplog.text) == ("14" not in policies)


@pytest.mark.parametrize(("policy", "kept"), [("clip", [16.0]), ("keep", [40.0, 60.0]), ("drop", []), ("fail", [])])
def test_moments_beyond_a_file_follow_the_policy_where_annotations_know_no_duration(tmp_path, vectors, caplog, policy, kept):
    code = 0 if kept else 2
    own = write(tmp_path / "own.jsonl", {**ROW, "end_s": 40.0}, {**ROW, "start_s": 50.0, "end_s": 60.0})
    arguments = ["--dataset", str(own), "--glove", str(vectors), "--carve-val", "0", "--hygiene.beyond-video", policy]
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    store = features(tmp_path / "f", ["v"])
    packing = ["--features", str(store), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]
    assert main(["pack", *packing]) == code
    if code == 0:
        assert [query.end_s for query in TrainingStore(tmp_path / "s").queries("train")] == kept
    if policy == "clip":
        assert "train:own:1 (40 to 16.00 s)" in caplog.text
        clipped = json.loads((tmp_path / "s" / "coverage.json").read_text())["clipped"]
        assert clipped == [{"annotation_id": "train:own:1", "end_s": 40.0, "of_file_s": 16.0}]
    if policy == "fail":
        assert "train:own:1: ends at 40 s, and the file of 'v' at 16.00 s" in caplog.text


@pytest.mark.parametrize("policy", ["--missing-video", "--other-duration"])
def test_pack_can_be_told_to_stop(tmp_path, queries, policy):
    store = features(tmp_path / "f", ["a", "b"])
    arguments = ["--features", str(store), "--queries", str(queries), "--out", str(tmp_path / "s")]
    assert main(["pack", *arguments, policy, "fail"]) == 2


@pytest.mark.parametrize(
    ("asked", "held", "hint"),
    [
        (["v_abc", "v_def"], ["abc", "def"], "2 would match without the prefix v_, in place of 0"),
        (["S13-D21"], ["s13-d21"], "1 would match in lower case"),
        (["x.avi"], ["x"], "1 would match without a suffix such as .avi"),
        (["abc_210.0_360.0"], ["abc"], "1 would match without the time range at their end"),
    ],
)
def test_ids_that_would_match_by_a_known_rule_are_told(asked, held, hint):
    assert match_hint(set(asked), set(held)).startswith(f"; {hint}")
    assert match_hint(set(held), set(held)) == ""


# Hostile ids, any query

HOSTILE = [
    "../x",
    "/etc/x",
    "A",
    "a",
    "x" * 300,
    "a/b/../../c",
    "C:\\x",
    "..",
    "%2e%2e",
    "-",
    "a\tb",
    "né\u2028e",
    "shard/0.h5",
]


def test_hostile_ids_never_become_paths(tmp_path, vectors):
    inside = tmp_path / "inside"
    inside.mkdir()
    rows = [{**ROW, "video_id": v, "annotation_id": f"{v}!"} for v in HOSTILE]
    own = write(inside / "own.jsonl", *rows)
    outside = sorted(path for path in tmp_path.iterdir() if path != inside)
    assert (
        main(["tokenise", "--dataset", str(own), "--glove", str(vectors), "--carve-val", "0", "--out", str(inside / "q")])
        == 0
    )
    store = features(inside / "f", sorted(HOSTILE))
    arguments = ["--features", str(store), "--queries", str(inside / "q"), "--out", str(inside / "s"), "--shard-videos", "4"]
    assert main(["pack", *arguments]) == 0
    packed = TrainingStore(inside / "s")
    assert sorted(packed) == sorted(HOSTILE)
    assert {q.video_id: q.annotation_id for q in packed.queries("train")} == {v: f"{v}!" for v in HOSTILE}
    names = {path.name for path in inside.rglob("*") if path.is_file()}
    made = {
        "moments.jsonl",
        "vocabulary.txt",
        "vectors.npy",
        "unseen_words.txt",
        "unseen_vectors.npy",
        "report.json",
        "coverage.json",
        "uncovered.jsonl",
        "features.h5",
    }
    shards = {"all.h5", *(f"{n:05d}.h5" for n in range(4))}
    assert names == {"own.jsonl", "manifest.json", "records.jsonl", ".lock", *made, *shards}
    assert sorted(path for path in tmp_path.iterdir() if path != inside) == outside


@pytest.mark.parametrize("video_id", ["", " ", "a\0b"])
def test_ids_that_are_none_are_refused_by_line(tmp_path, caplog, video_id):
    own = write(tmp_path / "own.jsonl", ROW, {**ROW, "video_id": video_id})
    assert main(["tokenise", "--dataset", str(own), "--report"]) == 2
    assert "own.jsonl:2: video_id" in caplog.text


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300), min_size=1, max_size=8
    )
)
def test_any_queries_come_back_from_the_store_in_order(tmp_path_factory, texts):
    tmp_path = tmp_path_factory.mktemp("any")
    (tmp_path / "vectors.txt").write_text("the 0.1 0.2\n")
    own = write(tmp_path / "own.jsonl", ROW, *({**ROW, "query": text} for text in texts))
    arguments = ["--dataset", str(own), "--glove", str(tmp_path / "vectors.txt"), "--carve-val", "0"]
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    store = features(tmp_path / "f", ["v"])
    assert main(["pack", "--features", str(store), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]) == 0
    packed = TrainingStore(tmp_path / "s")
    words = packed.vocabulary.words
    found = packed.queries("train")
    assert [q.query for q in found] == [ROW["query"], *(one_line(text) for text in texts if tokenise(one_line(text)))]
    for query in found:
        assert [words[i] for i in query.token_ids] == list(query.tokens) == tokenise(query.query)
