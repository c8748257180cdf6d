"""Annotations that were made again: what their files say, and which rankings change on them."""

from __future__ import annotations

import json

import pytest
from chain_data import jsonl

from excl.datasets.annotations import reannotated, timelens
from excl.workflows.cli import main

CSV = """HITId,video_id,description,start,end
H1,AAA.mp4,a person opens a door.,10,30
H1,AAA.mp4,a person opens a door.,60,80
H2,BBB.mp4,"a person, sitting, eats.",0,50
"""
TIMELENS = {
    "AAA": {"duration": 20.0, "spans": [[12.0, 16.0], [1, 2]], "queries": ["A person  opens a door", "a new sentence"]},
    "BBB": {"duration": 10.0, "spans": [[0, 5]], "queries": ["a person, sitting, eats."]},
}
OFFICIAL = [
    {"video_id": "AAA", "query": "a person opens a door.", "start_s": 2.0, "end_s": 6.0, "duration_s": 20.0},
    {"video_id": "BBB", "query": "a person, sitting, eats.", "start_s": 0.0, "end_s": 5.0, "duration_s": 10.0},
    {"video_id": "CCC", "query": "only here", "start_s": 0.0, "end_s": 5.0, "duration_s": 10.0},
]


@pytest.fixture
def folder(tmp_path):
    """The official annotations, both kinds made again, and two predictions of which each has one of two answers."""
    (tmp_path / "again.csv").write_text(CSV)
    (tmp_path / "lengths.csv").write_text("id,length\nAAA,20\nBBB,10\n")
    (tmp_path / "again.json").write_text(json.dumps(TIMELENS))
    rows = [{**row, "annotation_id": f"q{n}", "split": "test"} for n, row in enumerate(OFFICIAL)]
    jsonl(tmp_path / "official.jsonl", rows)
    for name, window in (("first", [2, 6, 1]), ("second", [12, 16, 1])):
        lines = [{"qid": f"q{n}", "vid": row["video_id"], "query": row["query"]} for n, row in enumerate(OFFICIAL)]
        windows = [[window], [[0, 5, 1]], [[0, 1, 1]]]
        jsonl(tmp_path / f"{name}.jsonl", [{**a, "pred_relevant_windows": b} for a, b in zip(lines, windows, strict=True)])
    return tmp_path


def test_percents_become_seconds_and_answers_alternatives(folder):
    first, second, third = reannotated.load(folder / "again.csv", split="test", durations=[folder / "lengths.csv"])
    assert [(m.video_id, m.start_s, m.end_s, m.duration_s) for m in (first, second, third)] == [
        ("AAA", 2.0, 6.0, 20.0), ("AAA", 12.0, 16.0, 20.0), ("BBB", 0.0, 5.0, 10.0)
    ]  # fmt: skip
    assert first.query_id == second.query_id != third.query_id
    assert third.query == "a person, sitting, eats."
    moments = timelens.load(folder / "again.json", split="test")
    assert [(m.video_id, m.query, m.start_s, m.end_s, m.duration_s) for m in moments[:2]] == [
        ("AAA", "A person  opens a door", 12.0, 16.0, 20.0), ("AAA", "a new sentence", 1.0, 2.0, 20.0)
    ]  # fmt: skip


def test_the_order_of_two_predictions_changes(folder, capsys):
    """The official answer is the first one's; TimeLens has that of the second; of five people some gave either."""
    files = [str(folder / "first.jsonl"), str(folder / "second.jsonl")]
    asked = ["rankings", *files, "--against", str(folder / "official.jsonl")]
    out = folder / "figures.json"
    assert main([*asked, "--again", str(folder / "again.json"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 queries in both" in shown
    assert "(2 of the 3 sentences of the latter)" in shown
    assert f"by R1@0.5 the order of {files[0]} and {files[1]} changes" in shown
    found = json.loads(out.read_text())
    assert [found["figures"][path][when]["R1@0.5"] for path in files for when in ("official", "again")] == [100, 50, 50, 100]
    assert found["swapped"]["mIoU"] == [files]
    rows = [line.split() for line in shown.splitlines() if line.startswith(tuple(files))]
    assert [row[-2:] for row in rows] == [["1", "2"], ["2", "1"]]
    assert main([*asked, "--again", str(folder / "again.csv"), "--durations", str(folder / "lengths.csv")]) == 0
    shown = capsys.readouterr().out
    assert "both sets rank the predictions alike" in shown
    assert [line.split()[2] for line in shown.splitlines()[2:4]] == ["100.0", "100.0"], "either answer is right"


def test_predictions_are_scored_by_sentence(folder, capsys, caplog):
    asked = ["score", str(folder / "second.jsonl"), "--json", "--against"]
    assert main([*asked, str(folder / "again.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["all"]["num_queries"] == 3
    assert found["model"]["all"]["R1@0.7"] == pytest.approx(200 / 3)
    assert found["misfits"]["missing"]["number"] == 1
    assert main([*asked, str(folder / "again.csv"), "--durations", str(folder / "lengths.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["all"]["R1@0.7"] == 100.0
    assert main([*asked, str(folder / "again.csv")]) == 2
    assert "again.csv:2: video AAA has no length in no file at all" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("again.csv", "HITId,video_id,description,start\n", "again.csv:1: no column 'end'"),
        ("again.csv", "HITId,video_id,description,start,end\nH,AAA.mp4,x,y,3\n", "again.csv:2: the start is 'y'"),
        ("again.csv", "HITId,video_id,description,start,end\nH,AAA.mp4,x\n", "again.csv:2: the row has fewer fields"),
        ("again.json", '{"AAA": {"duration": 3, "spans": [[0, 1]], "queries": []}}', "1 spans but 0 queries"),
        ("again.json", '{"AAA": {"duration": 3, "spans": [[0, 1]], "queries": ["z"]}}', "no sentence in common with"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, caplog, name, text, message):
    (folder / name).write_text(text)
    asked = ["rankings", str(folder / "first.jsonl"), "--against", str(folder / "official.jsonl")]
    assert main([*asked, "--again", str(folder / name), "--durations", str(folder / "lengths.csv")]) == 2
    assert message in caplog.text


def test_files_of_a_split_are_groups(tmp_path, capsys):
    """As those of changing distributions or new compositions: results are given for each."""
    for name, row in (("train", OFFICIAL[0]), ("iid", OFFICIAL[1]), ("ood", OFFICIAL[2])):
        length = "video_duration" if name == "ood" else "duration"  # as Charades-CD has it
        video = {length: row["duration_s"], "timestamps": [[row["start_s"], row["end_s"]]], "sentences": [row["query"]]}
        (tmp_path / f"{name}.json").write_text(json.dumps({row["video_id"]: video}))
    (tmp_path / "vectors.txt").write_text("a 0.1 0.2\n")
    files = ["--train", str(tmp_path / "train.json"), "--test", str(tmp_path / "iid.json"), str(tmp_path / "ood.json")]
    arguments = ["--dataset", "activitynet-captions", *files, "--glove", str(tmp_path / "vectors.txt"), "--carve-val", "0"]
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    moments = [json.loads(line) for line in (tmp_path / "q" / "moments.jsonl").read_text().splitlines()]
    assert {m["duration_s"] for m in moments} == {20.0, 10.0}
    assert {m["video_id"]: m["group"] for m in moments} == {"AAA": "", "BBB": "iid", "CCC": "ood"}
    lines = [{"qid": m["annotation_id"], "pred_relevant_windows": [[0, 5]]} for m in moments if m["split"] == "test"]
    asked = ["score", str(jsonl(tmp_path / "p.jsonl", lines)), "--against", str(tmp_path / "q" / "moments.jsonl"), "--json"]
    capsys.readouterr()
    assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["model"]["groups"]) == set(found["query_only"]["groups"]) == {"iid", "ood"}
