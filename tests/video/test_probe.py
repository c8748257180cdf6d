"""`excl probe`: what videos are, told before any work, whatever is among them."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from shared_fixtures import write_video

from excl.workflows.cli import main


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "plain.mp4", list(range(50)), time_base=Fraction(1, 25), rate=25, width=64, height=48)
    write_video(tmp_path / "film.mkv", [i * 42 for i in range(50)], width=128, height=96, pixel_aspect=Fraction(4, 3))
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "plain.mkv", [0, 40, 80], width=64, height=48)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    return tmp_path


def test_json_for_programs(folder, capsys):
    assert main(["probe", "--videos", str(folder), "--json"]) == 3
    rows = {
        row["path"].removeprefix(str(folder) + "/"): row for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert sorted(rows) == ["empty.avi", "film.mkv", "other/plain.mkv", "plain.mp4", "text.mp4"]
    plain = rows["plain.mp4"]["probe"]
    assert (plain["codec"], plain["width"], plain["height"], plain["rate"]) == ("h264", 64, 48, 25.0)
    assert (plain["duration_s"], plain["start_s"], plain["frames"], plain["rotation"]) == (2.0, 0.0, 50, 0)
    assert rows["film.mkv"]["probe"]["notes"] == ["pixels of 4:3, made square"]
    assert rows["text.mp4"]["reason"] == "not_a_video"
    assert rows["empty.avi"]["reason"] == "empty"
    assert rows["plain.mp4"]["same_id"] == rows["other/plain.mkv"]["same_id"] == 2


def test_a_table_for_people(folder, capsys):
    assert main(["probe", "--videos", str(folder)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["id", "codec", "size", "rate", "seconds", "frames", "turned", "notes"]
    [plain] = [line for line in lines if line.startswith("plain") and " 50 " in line]
    assert plain.split()[1:7] == ["h264", "64x48", "25.000", "2.00", "50", "-"]
    assert plain.endswith("2 files share this id")
    assert "not_a_video: " in next(line for line in lines if line.startswith("text"))
    assert lines[-1].startswith("5 files, 4 with problems, 0.00 hours")


def test_good_videos_have_exit_code_0(folder):
    assert main(["probe", "--videos", str(folder / "plain.mp4")]) == 0
    assert main(["probe", "--videos", str(folder / "nowhere")]) == 1


def test_real_videos(shared, capsys):
    assert main(["probe", "--videos", str(shared / "videos"), "--json"]) == 0
    rows = {row["video_id"]: row["probe"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name: (p["codec"], p["width"], p["height"]) for name, p in rows.items()} == {
        "flipping_a_pancake": ("h264", 426, 240),
        "v_GGSY1Qvo990": ("h264", 320, 240),
        "v_ZNVhz7ctTq0": ("h264", 480, 360),
    }
