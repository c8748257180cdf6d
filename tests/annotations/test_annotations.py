"""The adapters: every row of the official files, synthetic files in each format, and what they refuse."""

import csv
import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from excl.datasets.annotations import activitynet_captions, charades_sta, csv_table, jsonl, moment_detr, tacos, tacos_tall
from excl.datasets.annotations.cleaning import clean, find_flaws

ANNOTATIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "annotations"
needs_official_files = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason=f"the official annotation files are not at {ANNOTATIONS}"
)


@cache
def official(data_set, name):
    if data_set == "charades":
        durations = [ANNOTATIONS / "charades" / f"Charades_v1_{part}.csv" for part in ("train", "test")]
        path = ANNOTATIONS / "charades" / f"charades_sta_{name}.txt"
        return path, charades_sta.load(path, split=name, durations=durations)
    path = ANNOTATIONS / data_set / f"{name}.json"
    load = {"activitynet": activitynet_captions.load, "tacos": tacos.load}[data_set]
    return path, load(path, split=name)


OFFICIAL = [
    # data set, file, rows, videos
    ("charades", "train", 12_408, 5_338),
    ("charades", "test", 3_720, 1_334),
    ("activitynet", "train", 37_421, 10_009),
    ("activitynet", "val_1", 17_505, 4_917),
    ("activitynet", "val_2", 17_031, 4_885),
    ("tacos", "train", 9_790, 75),
    ("tacos", "val", 4_436, 27),
    ("tacos", "test", 4_001, 25),
]


@needs_official_files
@pytest.mark.parametrize(("data_set", "name", "num_rows", "num_videos"), OFFICIAL)
def test_every_row_of_the_official_files_comes_out_once(data_set, name, num_rows, num_videos):
    path, moments = official(data_set, name)
    separator = "##" if data_set == "charades" else r"\[\d[\d.]*, \d[\d.]*\]"  # one in every row: [start, end]
    in_file = len(re.findall(separator, path.read_text()))
    assert len(moments) == in_file == num_rows
    assert len({m.video_id for m in moments}) == num_videos
    assert len({m.annotation_id for m in moments}) == num_rows
    assert {m.split for m in moments} == {name}
    assert all(m.query == m.query.strip() != "" and "\n" not in m.query for m in moments)


@needs_official_files
@pytest.mark.parametrize(
    ("data_set", "name", "num_beyond", "num_empty", "most_s"),
    [
        ("charades", "train", 1_805, 4, 1.54),
        ("charades", "test", 562, 0, 1.5),
        ("activitynet", "train", 261, 4, 0.01),
        ("activitynet", "val_1", 134, 0, 0.01),
        ("activitynet", "val_2", 111, 0, 0.01),
        ("tacos", "train", 43, 0, 15 / 29.4),
        ("tacos", "val", 0, 0, 0.0),
        ("tacos", "test", 5, 0, 7 / 29.4),
    ],
)
def test_cleaning_the_official_files_changes_the_known_number_of_rows(data_set, name, num_beyond, num_empty, most_s):
    _, moments = official(data_set, name)
    result = clean(moments)
    flaws = find_flaws(moments)
    assert len(flaws["beyond_video"]) == num_beyond
    assert len(flaws["unordered"]) == len(result.dropped) == num_empty
    clipped = [m for m, how in result.changed if how == "clipped"]
    assert max((m.end_s - m.duration_s for m in clipped), default=0.0) == pytest.approx(most_s, abs=1e-9)
    duplicates = {("tacos", "train"): 1_201, ("tacos", "val"): 516, ("tacos", "test"): 567}
    assert len(flaws["duplicates"]) == duplicates.get((data_set, name), 0)
    assert flaws["unusable_query"] == []


@needs_official_files
def test_the_rows_dropped_are_the_known_bad_ones():
    dropped = [m for m, _ in clean(official("charades", "train")[1]).dropped]
    assert [(m.video_id, m.start_s, m.end_s) for m in dropped] == [
        ("LEOL6", 8.0, 7.0),
        ("IOL8Q", 20.9, 12.0),
        ("AKKWU", 38.0, 13.0),
        ("AKKWU", 38.0, 13.0),
    ]
    lines = (ANNOTATIONS / "charades" / "charades_sta_train.txt").read_text().split("\n")
    for m in dropped:
        name, _, line_number = m.source.partition(":")
        assert name == "charades_sta_train.txt"
        assert lines[int(line_number) - 1].startswith(f"{m.video_id} {m.start_s} {m.end_s}##")
    assert Counter(m.video_id for m, _ in clean(official("activitynet", "train")[1]).dropped) == Counter(
        ["v_0bosp4-pyTM", "v_rhOtqArO-3Y", "v_N7ppHQNikv8", "v_4rKTw99bM8g"]
    )


@needs_official_files
def test_rows_of_the_official_files_have_the_values_seen_in_them():
    charades = official("charades", "train")[1][0]
    assert (charades.video_id, charades.start_s, charades.end_s) == ("AO8RW", 0.0, 6.9)
    assert charades.query == "a person is putting a book on a shelf."
    assert charades.duration_s == 33.67
    taco = official("tacos", "train")[1][0]
    assert (taco.video_id, taco.query) == ("s17-d69", "He took out a pan")
    # lighthouse's jsonl has this row in seconds, made by others.
    assert (taco.start_s, taco.end_s) == pytest.approx((7.619, 12.177), abs=1e-3)
    assert taco.duration_s == pytest.approx(423.06, abs=0.005)
    captions = official("activitynet", "train")[1]
    assert (captions[1].video_id, captions[1].start_s, captions[1].end_s) == ("v_QOlSCBRmfWY", 17.37, 60.81)
    assert captions[1].duration_s == 82.73
    assert captions[1].query.startswith("The girl dances")  # the file has a space before it


@needs_official_files
def test_the_second_validation_set_has_no_video_of_its_own():
    first, second = ({m.video_id for m in official("activitynet", name)[1]} for name in ("val_1", "val_2"))
    assert second < first


# Charades-STA


def write_charades(tmp_path, rows, lengths="id,length\nAAA,10.5\nBBB,20\n"):
    path, durations = tmp_path / "sta.txt", tmp_path / "lengths.csv"
    path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    durations.write_bytes(lengths if isinstance(lengths, bytes) else lengths.encode())
    return path, [durations]


def load_charades(tmp_path, rows, **kwargs):
    path, durations = write_charades(tmp_path, rows, **kwargs)
    return charades_sta.load(path, split="train", durations=durations)


def test_a_charades_row_becomes_a_moment(tmp_path):
    rows = "AAA 0.0 6.9##a person runs.\n\nBBB 30 2##bad times stay##so do marks\r\nAAA 1 2##no line end"
    first, second, third = load_charades(tmp_path, rows)
    assert (first.annotation_id, first.video_id, first.query) == ("train:sta:1", "AAA", "a person runs.")
    assert (first.start_s, first.end_s, first.duration_s) == (0.0, 6.9, 10.5)
    assert (first.split, first.source, first.group) == ("train", "sta.txt:1", "")
    assert (second.start_s, second.end_s, second.query) == (30.0, 2.0, "bad times stay##so do marks")
    assert (second.source, third.source) == ("sta.txt:3", "sta.txt:4")
    assert third.query == "no line end"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("AAA 0 1##x\nAAA 0 1 a person\n", r"sta\.txt:2: found 'AAA 0 1 a person'; expected `video start end##query`"),
        ("AAA 0##x\n", r"sta\.txt:1: found"),
        ("AAA 0 1 2##x\n", r"sta\.txt:1: found"),
        ("##x\n", r"sta\.txt:1: found"),
        ("AAA zero 1##x\n", r"sta\.txt:1: the start is 'zero'; expected a number"),
        ("AAA 0 1,5##x\n", r"sta\.txt:1: the end is '1,5'; expected a number"),
        ("CCC 0 1##x\n", r"sta\.txt:1: video CCC has no length in .*lengths\.csv"),
        (b"AAA 0 1##x\nAAA 0 1##caf\xe9\n", r"sta\.txt:2: byte 0xe9 is not UTF-8"),
        ("AAA 0 1##a\0b\n", r"sta\.txt:1: query .* NUL"),
    ],
)
def test_a_bad_charades_row_is_refused_by_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_charades(tmp_path, rows)


def test_lengths_may_be_json(tmp_path):
    (tmp_path / "charades.json").write_text('{"AAA": {"subset": "training", "duration": 10.5, "actions": []}}')
    path, _ = write_charades(tmp_path, "AAA 0 1##x\n")
    [m] = charades_sta.load(path, split="train", durations=[tmp_path / "charades.json"])
    assert m.duration_s == 10.5
    (tmp_path / "charades.json").write_text('{"AAA": {"subset": "training"}}')
    with pytest.raises(ValueError, match=r"charades\.json: AAA: no 'duration'"):
        charades_sta.load(path, split="train", durations=[tmp_path / "charades.json"])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ("name,length\nAAA,1\n", r"lengths\.csv:1: the columns are \['name', 'length'\]; expected one of id, .* and one of"),
        ("id,length\nBBB,1\nAAA\n", r"lengths\.csv:3: the duration is ''; expected a number"),
        ("id,length\n,1\n", r"lengths\.csv:2: the row has no id"),
        ("id,length\nAAA,long\n", r"lengths\.csv:2: the duration is 'long'"),
        ("id,length\nAAA,nan\n", r"lengths\.csv:2: the duration is nan; expected a finite number above 0"),
        ("id,length\nAAA,0\n", r"lengths\.csv:2: the duration is 0; expected a finite number above 0"),
        ("id,length\nAAA,1\nAAA,2\n", r"lengths\.csv:3: video AAA is 2\.0 s long here and 1\.0 s before"),
        (b"id,length\nAAA,\xff\n", r"lengths\.csv:2: byte 0xff is not UTF-8"),
        ("", r"lengths\.csv:1: the columns are \[\]; expected one of id"),
        ("id,length\nBBB,1\n", "video AAA has no length"),
        ("id,length\n" + "A" * 200_000 + ",1\n", r"lengths\.csv:\d: cannot be read as a table"),
    ],
)
def test_a_bad_table_of_lengths_is_refused_by_line(tmp_path, lengths, message):
    with pytest.raises(ValueError, match=message):
        load_charades(tmp_path, "AAA 0 1##x\n", lengths=lengths)


# ActivityNet Captions and TACoS


def captions_file(tmp_path, value, name="train.json"):
    path = tmp_path / name
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def video(**changes):
    record = {"duration": 20, "timestamps": [[0, 5.5], [4, 21]], "sentences": [" He runs. ", "He\nstops \n there."]}
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def frames(**changes):
    record = {"timestamps": [[0, 50], [25, 110]], "fps": 25.0, "num_frames": 100, "sentences": ["He runs.", "She"]}
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def test_captions_become_moments(tmp_path):
    path = captions_file(tmp_path, {"v_b": video(), "v_a": video(timestamps=[], sentences=[])})
    first, second = activitynet_captions.load(path, split="val")
    assert (first.annotation_id, first.video_id, first.query) == ("val:train:v_b:0", "v_b", "He runs.")
    assert (first.start_s, first.end_s, first.duration_s) == (0.0, 5.5, 20.0)
    assert (first.split, first.source) == ("val", "train.json: v_b[0]")
    assert (second.query, second.end_s) == ("He stops there.", 21.0)


def test_tacos_frames_become_seconds(tmp_path):
    first, second = tacos.load(captions_file(tmp_path, {"s1.avi": frames()}), split="train")
    assert (first.annotation_id, first.video_id, first.source) == ("train:train:s1:0", "s1", "train.json: s1.avi[0]")
    assert (first.start_s, first.end_s, first.duration_s) == (0.0, 2.0, 4.0)
    assert (second.start_s, second.end_s) == (1.0, 4.4)


def test_two_files_of_one_split_share_no_id(tmp_path):
    paths = [captions_file(tmp_path, {"v": video()}, name) for name in ("val_1.json", "val_2.json")]
    ids = [m.annotation_id for path in paths for m in activitynet_captions.load(path, split="val")]
    assert len(set(ids)) == 4


BAD_RECORDS = [
    ({"timestamps": None}, r": v: no 'timestamps'; found the keys"),
    ({"sentences": None}, r": v: no 'sentences'"),
    ({"timestamps": {}}, r": v: 'timestamps' is \{\}; expected list"),
    ({"sentences": "ab"}, r": v: 'sentences' is \"ab\"; expected list"),
    ({"sentences": ["one"]}, r": v: 2 timestamps but 1 sentences"),
    ({"timestamps": [[0, 1], [1]]}, r": v\[1\]: the timestamp is \[1\]; expected \[start, end\]"),
    ({"timestamps": [5, [0, 1]]}, r": v\[0\]: the timestamp is 5"),
    ({"timestamps": [[0, 1, 2], [0, 1]]}, r": v\[0\]: the timestamp is \[0, 1, 2\]"),
    ({"timestamps": [[True, 1], [0, 1]]}, r": v\[0\]: the start is true; expected a number"),
    ({"timestamps": [[0, "1"], [0, 1]]}, r": v\[0\]: the end is \"1\"; expected a number"),
    ({"timestamps": [[0, 10**400], [0, 1]]}, r": v\[0\]: the end has 401 digits"),
    ({"sentences": ["x", 7]}, r": v\[1\]: the sentence is 7; expected a string"),
    ({"sentences": ["x", "a\ud800"]}, r"train\.json: v\[1\]: query .* half a surrogate"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_RECORDS)
@pytest.mark.parametrize(("load", "record"), [(activitynet_captions.load, video), (tacos.load, frames)])
def test_a_bad_record_is_refused_by_video(tmp_path, load, record, changes, message):
    with pytest.raises(ValueError, match="train.json" if message.startswith("train") else r"train\.json" + message):
        load(captions_file(tmp_path, {"ok": record(), "v": record(**changes)}), split="train")


@pytest.mark.parametrize("value", [0, -1, True, "20", float("nan"), float("inf"), [1]])
def test_a_length_or_rate_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"train\.json: v: 'duration' is .*expected a"):
        activitynet_captions.load(captions_file(tmp_path, {"v": video(duration=value)}), split="train")
    for key in ("fps", "num_frames"):
        with pytest.raises(ValueError, match=rf"train\.json: v: '{key}' is .*expected a"):
            tacos.load(captions_file(tmp_path, {"v": frames(**{key: value})}), split="train")


@pytest.mark.parametrize("load", [activitynet_captions.load, tacos.load])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.json:1: cannot be read as JSON"),
        (b'{"v":\n {"fps": 1,}}', r"train\.json:2: cannot be read as JSON: .* column"),
        (b"[]", r"train\.json:1: found \[\] where a JSON object"),
        (b'{"v": []}', r"train\.json: v: found \[\] where an object"),
        (b'{"v": {}, "v": {}}', r"train\.json:1: .*one object has the key 'v' 2 times"),
        (b'{"v": "\xff"}', r"train\.json:1: byte 0xff is not UTF-8"),
        (b"[" * 100_000, r"train\.json:1: cannot be read as JSON"),
        (b'{"v": ' + b"1" * 5_000 + b"}", r"train\.json:1: cannot be read as JSON"),
    ],
)
def test_a_file_that_is_not_the_format_is_refused(tmp_path, load, content, message):
    with pytest.raises(ValueError, match=message):
        load(captions_file(tmp_path, content), split="train")


def test_times_that_are_not_finite_are_left_to_clean(tmp_path):
    path = captions_file(tmp_path, b'{"v": {"duration": 9, "timestamps": [[NaN, 1e999]], "sentences": ["x"]}}')
    moments = activitynet_captions.load(path, split="train")
    assert len(moments) == len(clean(moments).dropped) == 1


# JSON lines


ROW = {"video_id": "v1", "query": " He\nruns. ", "start_s": 1, "end_s": 2.5}


def write_jsonl(tmp_path, *rows):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_a_row_with_the_required_keys_becomes_a_moment(tmp_path):
    [m] = jsonl.load(write_jsonl(tmp_path, ROW), split="test")
    assert (m.annotation_id, m.video_id, m.query) == ("test:own:1", "v1", "He runs.")
    assert (m.start_s, m.end_s, m.duration_s) == (1.0, 2.5, None)
    assert (m.split, m.source, m.group) == ("test", "own.jsonl:1", "")


def test_a_row_with_all_keys_becomes_a_moment(tmp_path):
    row = {**ROW, "duration_s": 9, "annotation_id": "mine", "split": "val", "group": "ordinal"}
    [m] = jsonl.load(write_jsonl(tmp_path, row), split=None)
    assert (m.annotation_id, m.duration_s, m.split, m.group) == ("mine", 9.0, "val", "ordinal")
    assert jsonl.load(write_jsonl(tmp_path, row), split="val") == [m]


def test_lines_end_at_line_feeds_alone_and_blank_ones_count(tmp_path):
    path = write_jsonl(
        tmp_path,
        b"\xef\xbb\xbf" + json.dumps(ROW).encode(),
        b" \r",
        '{"video_id": "v", "query": "a\u2028b", '.encode() + b'"start_s": 0, "end_s": 1, "duration_s": null}\r',
        b"",
    )
    first, second = jsonl.load(path, split="train")
    assert first.video_id == "v1"
    assert (second.query, second.source, second.duration_s) == ("a\u2028b", "own.jsonl:3", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in ROW.items() if k != "query"}, r":2: no 'query'; found the keys"),
        ({**ROW, "querry": "x", "vid": "y"}, r":2: unknown keys 'querry', 'vid'; expected"),
        ({**ROW, "video_id": 5}, r":2: 'video_id' is 5; expected str"),
        ({**ROW, "video_id": ""}, r":2: video_id is empty"),
        ({**ROW, "query": None}, r":2: 'query' is null; expected str"),
        ({**ROW, "start_s": "1"}, r":2: 'start_s' is \"1\"; expected a number"),
        ({**ROW, "end_s": False}, r":2: 'end_s' is false; expected a number"),
        ({**ROW, "end_s": None}, r":2: 'end_s' is null; expected a number"),
        ({**ROW, "duration_s": 0}, r":2: 'duration_s' is 0; expected a finite number above 0"),
        ({**ROW, "duration_s": True}, r":2: 'duration_s' is true; expected a number"),
        ({**ROW, "annotation_id": 3}, r":2: 'annotation_id' is 3; expected str"),
        ({**ROW, "annotation_id": "train:own:1"}, r":2: annotation_id 'train:own:1' is that of line 1"),
        ({**ROW, "group": ["a"]}, r":2: 'group' is \[\"a\"\]; expected str"),
        ({**ROW, "split": "test"}, r":2: the row says split 'test', but the file is read as 'train'"),
        ({**ROW, "split": 1}, r":2: 'split' is 1; expected str"),
        ([1], r":2: found \[1\] where a JSON object"),
        (b'{"video_id": "v"', r":2: cannot be read as JSON: .* column"),
        (b'{"video_id": "v", "video_id": "w"}', r":2: .*key 'video_id' 2 times"),
        (b'"\xc3"', r":2: byte 0xc3 is not UTF-8"),
        ({**ROW, "query": "q\ud800"}, r":2: query .* half a surrogate pair"),
    ],
)
def test_a_bad_row_is_refused_by_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=r"own\.jsonl" + message):
        jsonl.load(write_jsonl(tmp_path, ROW, row), split="train")


def test_rows_may_name_their_split_and_are_of_train_if_they_do_not(tmp_path):
    loaded = jsonl.load(write_jsonl(tmp_path, {**ROW, "split": "val"}, ROW), split=None)
    assert [(m.split, m.annotation_id) for m in loaded] == [("val", "val:own:1"), ("train", "train:own:2")]


def test_comments_are_no_rows_and_keep_the_numbers_of_lines(tmp_path):
    [m] = jsonl.load(write_jsonl(tmp_path, b'# {"video_id": 1}', b"  # more", ROW), split="train")
    assert m.source == "own.jsonl:3"


def test_a_file_of_another_format_is_told_by_its_keys(tmp_path):
    row = {"qid": 1, "query": "x", "duration": 9, "vid": "v", "relevant_windows": [[0, 1]]}
    with pytest.raises(ValueError, match="Moment-DETR's format is --dataset moment-detr"):
        jsonl.load(write_jsonl(tmp_path, row), split="train")


# Tables


def test_a_table_has_the_rows_of_json_lines(tmp_path):
    rows = [
        {**ROW, "query": 'a, b; "c"', "duration_s": 9.5, "split": "val", "group": "ordinal", "query_id": "q"},
        {**ROW, "query": "née"},
    ]
    wanted = jsonl.load(write_jsonl(tmp_path, *rows), split=None)
    names = ["video_id", "query", "start_s", "end_s", "duration_s", "split", "group", "query_id"]
    for delimiter, name in ((",", "own.csv"), (";", "semicolon.csv"), ("\t", "tabs.tsv")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        found = csv_table.load(tmp_path / name, split=None)
        assert [replace(m, source="", annotation_id="x") for m in found] == [
            replace(m, source="", annotation_id="x") for m in wanted
        ]
        assert [m.source for m in found] == [f"{name}:2", f"{name}:3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "video,query\nv,x\n",
            r"own\.csv:1: the columns are \['video', 'query'\], without \['video_id', 'start_s', 'end_s'\]",
        ),
        ("", r"own\.csv:1: the columns are \[\]"),
        ("video_id,query,start_s,end_s,query\n", r"own\.csv:1: .*each name may be there once"),
        ("video_id,query,start_s,end_s\nv,he runs, she,1,2\n", r"own\.csv:2: more fields than .* comma not in quotes"),
        ("video_id;query;start_s;end_s\nv;x;1,5;2\n", r"own\.csv:2: 'start_s' is '1,5'; expected a number of seconds"),
        ("video_id,query,start_s,end_s\nv,x,1\n", r"own\.csv:2: no 'end_s'"),
        ("video_id,query,start_s,end_s,colour\nv,x,1,2,red\n", r"own\.csv:2: unknown keys 'colour'"),
        ('video_id,query,start_s,end_s\nv,"x,1,2\n', r"own\.csv:\d: cannot be read as a table"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path, content, message):
    (tmp_path / "own.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        csv_table.load(tmp_path / "own.csv", split="train")


# Moment-DETR


WINDOWS = {"qid": 8, "query": " A man\ncooks ", "duration": 126, "vid": "NUs_210.0_360.0", "relevant_windows": [[14, 22.5]]}


def test_windows_become_moments_and_those_of_one_query_stay_together(tmp_path):
    several = {**WINDOWS, "qid": "s17-d69_0", "relevant_windows": [[0, 2], [4, 6]], "saliency_scores": [[1, 2]]}
    one, first, second = moment_detr.load(write_jsonl(tmp_path, WINDOWS, several), split="val")
    assert (one.annotation_id, one.query_id, one.video_id, one.query) == (
        "val:own:8",
        "val:own:8",
        "NUs_210.0_360.0",
        "A man cooks",
    )
    assert (one.start_s, one.end_s, one.duration_s, one.source) == (14.0, 22.5, 126.0, "own.jsonl:1")
    assert (first.annotation_id, second.annotation_id) == ("val:own:s17-d69_0:0", "val:own:s17-d69_0:1")
    assert first.query_id == second.query_id == "val:own:s17-d69_0"
    assert (second.start_s, second.end_s, second.source) == (4.0, 6.0, "own.jsonl:2[1]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevant_windows": None}, "no 'relevant_windows'; is it a test split without its answers"),
        ({"relevant_windows": []}, "'relevant_windows' is empty"),
        ({"relevant_windows": [[1]]}, r"window 0 is \[1\]; expected \[start, end\]"),
        ({"relevant_windows": [[1, "2"]]}, 'the end is "2"'),
        ({"qid": True}, "'qid' is true"),
        ({"qid": None}, "no 'qid'"),
        ({"qid": 9}, "its qid is that of line 1 too"),
        ({"duration": -1}, "'duration' is -1"),
        ({"vid": 3}, "'vid' is 3; expected str"),
    ],
)
def test_a_bad_line_of_moment_detr_is_refused(tmp_path, changes, message):
    row = {key: value for key, value in {**WINDOWS, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=r"own\.jsonl:2: " + message):
        moment_detr.load(write_jsonl(tmp_path, {**WINDOWS, "qid": 9}, row), split="val")


# TACoS in TALL's version


@pytest.mark.parametrize("protocol", [0, 2])
def test_clips_of_tall_become_moments_with_the_lengths_of_its_pickle(tmp_path, protocol):
    (tmp_path / "train.txt").write_text("s13-d21.avi_252_452.avi##He took out a pan\ns13-d21_294_588\tHe\u2028left\n")
    (tmp_path / "frames.pkl").write_bytes(pickle.dumps({"s13-d21.avi": 2940, "s14-d35": 70_000}, protocol=protocol))
    first, second = tacos_tall.load(tmp_path / "train.txt", split="train", durations=[tmp_path / "frames.pkl"])
    assert (first.annotation_id, first.video_id, first.query) == ("train:train:1", "s13-d21", "He took out a pan")
    assert (first.start_s, first.end_s, first.duration_s) == pytest.approx((252 / 29.4, 452 / 29.4, 100.0))
    assert (second.video_id, second.start_s, second.end_s) == ("s13-d21", 10.0, 20.0)
    assert tacos_tall.load(tmp_path / "train.txt", split="train")[0].duration_s is None
    (tmp_path / "frames.json").write_text('{"s13-d21": 2940}')
    assert tacos_tall.load(tmp_path / "train.txt", split="train", durations=[tmp_path / "frames.json"]) == [first, second]


def test_a_pickle_is_never_run(tmp_path):
    (tmp_path / "frames.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="expected a pickle of a dictionary"):
        list(tacos_tall.read_frame_counts(tmp_path / "frames.pkl"))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "frames.pkl").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        list(tacos_tall.read_frame_counts(tmp_path / "frames.pkl"))


@pytest.mark.parametrize("line", ["s13-d21_252_452 He took", "s13-d21.avi##He", "s13_a_b##He", "_1_2##He"])
def test_a_line_that_is_no_clip_of_tall_is_refused(tmp_path, line):
    (tmp_path / "train.txt").write_text("s13-d21_252_452##ok\n" + line + "\n")
    with pytest.raises(ValueError, match=r"train\.txt:2: found .*expected `video_start_end##sentence`"):
        tacos_tall.load(tmp_path / "train.txt", split="train")


def test_a_clip_without_a_length_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("s13-d21_252_452##ok\n")
    (tmp_path / "frames.json").write_text('{"s14-d35": 2940}')
    with pytest.raises(ValueError, match=r"train\.txt:1: video s13-d21 has no length in .*frames\.json"):
        tacos_tall.load(tmp_path / "train.txt", split="train", durations=[tmp_path / "frames.json"])
