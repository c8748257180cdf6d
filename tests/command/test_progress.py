"""What people see of a run: one live view on a terminal, read off the screen of an emulator, and plain lines elsewhere."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import commands
import pytest
from terminal import on_terminal
from train_data import SMALL, make_store

from excl.pipeline.artifacts.manifest import Manifest

# Works on five things when a key is pressed for each, and says so in messages, long ones among them.
WORK = """
import logging, sys
from excl.models.progress.bars import progress_bar, step_list
logging.basicConfig(level=logging.INFO, format="%(message)s")
log = logging.getLogger("excl.test")
with step_list(["decode", "extract", "tokenise", "pack", "train", "evaluate"]) as begin:
    begin("decode")
    begin("extract")
    with progress_bar("extract", 5, unit="video") as bar:
        for number in range(5):
            sys.stdin.readline()
            log.warning("message %d: %s", number, "word " * 30)
            print("printed", number)
            bar.advance(note=f"{number} failed")
        sys.stdin.readline()
log.info("the end")
"""
WORDS = "word " * 30

# A stage that commits a video when a key is pressed; a handler without the terminal's filter stands for a file of messages.
STAGE = """
import logging, sys
from excl.pipeline.execution.progress import for_terminal, progress
handler = logging.StreamHandler(sys.stderr)
handler.addFilter(for_terminal)
file = logging.StreamHandler(open("/dev/null", "w"))
kept = []
file.emit = lambda record: kept.append(record.getMessage())
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler, file])
with progress("extract", 3) as run_progress:
    for record in ({"num_frames": 5}, {"error": "truncated", "message": "it ends"}, {"num_frames": 5}):
        sys.stdin.readline()
        run_progress.count({"id": "video/v", **record})
    sys.stdin.readline()
print(*(f"in a file: {line}" for line in kept if "of 3" in line), sep="\\n")
"""


@pytest.mark.parametrize("columns", [120, 80, 40, 24])
def test_the_view_stands_below_whole_messages_and_is_gone_at_the_end(columns):
    with on_terminal(["-c", WORK], columns=columns) as terminal:
        for number in range(3):
            terminal.press()
            terminal.wait_for(lambda screen, n=number: f"{n + 1} of 5 videos" in re.sub(r"\s+", " ", screen))
        # Not at every instant: between two reads the terminal may have got a part of what is written.
        screen = terminal.wait_for(
            lambda screen: (
                re.search(r"60 %\n.*3 of 5\s+videos", screen)
                and re.findall(r"^printed .*", screen.partition("decode")[0], re.MULTILINE)
                == [f"printed {n}" for n in range(3)]
            )
        )
        lines = terminal.lines
        first = next(number for number, line in enumerate(lines) if "decode" in line)
        assert screen.count("of 5") == 1  # one view, and nothing left of earlier ones
        view = re.sub(r"\s+", " ", " ".join(lines[first:]))
        assert re.match(r"✓ decode ▸ extract tokenise pack train evaluate \d+ s extract [━╸╺ ]*60 % 3 of 5 videos, ", view)
        assert re.search(r"videos/s|s for a video", view)
        assert re.search(r" left, 2 failed$", view)
        assert all(len(line) <= columns for line in lines)
        for _ in range(3):
            terminal.press()
        assert terminal.end() == 0
        text = re.sub(r"\s+", " ", " ".join(terminal.lines))
        assert "of 5 videos" not in text
        assert "decode" not in text
        assert terminal.lines[-1] == "the end"
        assert terminal.lines[-2] == "printed 4"
        assert terminal.cursor == (len(terminal.lines), 0, False)
    everything = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", terminal.written).decode()
    for number in range(5):  # a message is sent whole: the terminal breaks it, and a copy of it has no line breaks
        assert f"message {number}: {WORDS}".rstrip() in everything.replace("\r\n", "\n")


def test_colours_are_left_out_where_nobody_wants_them():
    for environment, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        with on_terminal(["-c", WORK], **environment) as terminal:
            terminal.wait_for(lambda screen: "evaluate" in screen)
            for _ in range(6):
                terminal.press()
            assert terminal.end() == 0
            assert bool(re.search(rb"\x1b\[(?:\d+;)*(?:3\d|38;5;\d+)m", terminal.written)) is colours


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"TTY_INTERACTIVE": "0"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(environment):
    with on_terminal(["-c", WORK], **environment) as terminal:
        for _ in range(6):
            terminal.press()
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.written
        assert b"of 5" not in terminal.written
        assert terminal.lines[-1] == "the end"


def test_a_file_gets_plain_lines_also_if_colours_are_forced():
    done = commands.run(
        [sys.executable, "-c", WORK.replace("sys.stdin.readline()", "pass")], capture_output=True, text=True,
        env={"FORCE_COLOR": "1", "TERM": "xterm", "PATH": ""},
    )  # fmt: skip
    assert done.stderr == "".join(f"message {n}: {WORDS}\n" for n in range(5)) + "the end\n"
    assert done.stdout == "".join(f"printed {n}\n" for n in range(5))


def test_the_terminal_is_usable_after_a_kill():
    with on_terminal(["-c", WORK]) as terminal:
        terminal.wait_for(lambda screen: "evaluate" in screen)
        terminal.process.send_signal(signal.SIGKILL)
        terminal.end()
        assert not terminal.cursor[2]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_training_shows_its_losses_and_ctrl_c_leaves_a_clean_screen(tmp_path):
    store = make_store(tmp_path / "data")
    flags = ["--store", str(store), "--out", str(tmp_path / "run"), "--epochs", "100000", "--patience", "100000", *SMALL]
    with on_terminal(["-m", "excl.workflows.cli", "train", *flags], columns=40) as terminal:
        screen = terminal.wait_for(lambda screen: re.search(r"loss\s+now\s+\d", screen) and "mIoU" in screen)
        assert re.search(r"^train +[━╸╺]+ +\d+ %$", screen, re.MULTILINE)
        told = re.sub(r"\s+", " ", screen)
        assert re.search(
            r"[\d,]+ of [\d,]+ steps, [\d,.]+ steps/s, .* left, epoch \d+ of 100000: loss now [\d.]+; epoch", told
        )
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        left = "\n".join(terminal.lines)
        assert "steps/s" not in left
        assert "interrupted; what was recorded is kept" in re.sub(r"\s+", " ", left)
        assert not terminal.cursor[2]


def test_a_stage_shows_its_failures_so_far_and_the_files_of_messages_get_lines():
    with on_terminal(["-c", STAGE]) as terminal:
        for number in range(3):
            terminal.press()
            terminal.wait_for(lambda screen, n=number: f"{n + 1} of 3 videos" in screen)
        terminal.wait_for(lambda screen: re.search(r"3 of 3 videos, .*, 0 s left, [\d,]+ frames/s, 1 failed$", screen))
        terminal.press()
        assert terminal.end() == 0
        lines = [line for line in terminal.lines if line.startswith("in a file: extract: ")]
        assert [re.split(r"[:,]", line)[2] for line in lines] == [f" {n} of 3 videos" for n in (1, 2, 3)]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_watching_follows_a_folder_that_another_process_fills(tmp_path):
    folder = tmp_path / "features"
    planned = {"id": "plan/0", "planned": [f"v{n}" for n in range(4)]}
    with Manifest.open(folder, stage="extract", identity={"fps": 5.0}, code_version=1) as manifest:
        manifest.add(planned)
        manifest.add({"id": "video/v0", "num_frames": 5, "duration_s": 1.0})
        with on_terminal(["-m", "excl.workflows.cli", "status", str(folder), "--watch"]) as terminal:
            terminal.wait_for(lambda screen: "1 of 4 videos" in screen)
            manifest.add({"id": "video/v1", "error": "truncated", "message": "v1: it ends early"})
            terminal.wait_for(lambda screen: "2 of 4 videos" in screen and "1 failed" in screen)
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == 0
            lines = terminal.lines
            assert not any("━" in line for line in lines)
            assert "1 of 4 videos done" in lines
            assert "2 videos still to do" in lines
        with on_terminal(["-m", "excl.workflows.cli", "status", str(folder), "--watch"]) as terminal:
            terminal.wait_for(lambda screen: "2 of 4 videos" in screen)
            for n in (2, 3):
                manifest.add({"id": f"video/v{n}", "num_frames": 5, "duration_s": 1.0})
            assert terminal.end() == 0  # by itself, since nothing is left to do
            assert "3 of 4 videos done" in terminal.lines


def test_the_list_of_commands_comes_without_what_draws_bars():
    code = "import sys\nfrom excl.workflows.cli import main\ntry: main(['--help'])\nfinally: print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("False\n")
