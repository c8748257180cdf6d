"""Questions about raw videos: what is answered, in which form, and what is not done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
from chain_data import make_from_raw_videos
from shared_fixtures import write_video

from excl.models.excl import ExCL
from excl.pipeline import localize, train
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.store import feature_cache
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.examples import load_examples
from excl.pipeline.training.trained_run import predict_with_rows
from excl.workflows.cli import main


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    return make_from_raw_videos(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A cache in which nothing is remembered yet."""
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "localize"


@pytest.fixture
def no_decoding(monkeypatch):
    """From now on nothing may be decoded, and no weights of I3D be read."""

    def forbid():
        monkeypatch.setattr(VideoReading, "open", lambda *_, **__: pytest.fail("decoded again"))
        monkeypatch.setattr(localize, "load_weights", lambda *_: pytest.fail("weights read again"))

    return forbid


def arguments_for(real_run, video, *queries):
    asked = [part for query in queries or ("it starts",) for part in ("--query", query)]
    return ["localize", "--run", str(real_run / "run"), "--video", str(video), "--device", "cpu", *asked]


def test_localize_answers_in_seconds(real_run, capsys):
    video = str(real_run / "videos" / "r0.mp4")
    arguments = ["localize", "--run", str(real_run / "run"), "--video", video, "--device", "cpu"]
    assert main([*arguments, "--query", "it starts", "--query", "What is it?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    start, end = (float(part.split()[0]) for part in lines[0].split(" to "))
    assert 0 <= start < end <= 6.0
    assert lines[1].endswith("What is it?")


def test_answers_that_are_kept_are_not_computed_again(real_run, tmp_path, capsys, caplog, monkeypatch):
    video = str(real_run / "videos" / "r0.mp4")
    arguments = ["localize", "--run", str(real_run / "run"), "--video", video, "--out", str(tmp_path / "answers")]
    arguments += ["--query", "it starts", "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(localize, "ask", lambda *_: pytest.fail("computed again"))
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--on-damage", "keep"]) == 2, "another way of reading may have other answers"
    assert "identity.reading.on_damage: the folder has 'fail', asked for is 'keep'" in caplog.text


def test_localize_finds_what_evaluation_finds(real_run, own_folder):
    """Features made anew from the raw video are those of the store, and so are the answers."""
    store = TrainingStore(real_run / "store")
    trained = train.load_run(real_run / "run", device="cpu")
    query = store.queries("val")[0]
    assert query.duration_s == 6.0  # the annotations did not say; the video does
    [[start_s, end_s, score]] = train.predict(trained.model, load_examples(store, [query]), batch_size=1)
    video = real_run / "videos" / f"{query.video_id}.mp4"
    [answer] = localize.run(
        localize.AskConfig(run=real_run / "run", video=video, query=(query.query,), device="cpu")
    ).answers
    assert (answer.start_s, answer.end_s, answer.score) == (start_s, end_s, pytest.approx(score, rel=1e-6))


def test_localize_refuses_other_weights_and_bad_videos(real_run, tmp_path, caplog):
    video = str(real_run / "videos" / "r0.mp4")
    arguments = ["localize", "--run", str(real_run / "run"), "--query", "it", "--device", "cpu"]
    assert main([*arguments, "--video", video, "--weights", "random:1"]) == 2
    assert "its features were made with the weights" in caplog.text
    (tmp_path / "bad.mp4").write_text("no video")
    assert main([*arguments, "--video", str(tmp_path / "bad.mp4")]) == 2
    assert "bad.mp4: cannot be decoded" in caplog.text


def test_the_best_moments_as_json(real_run, capsys):
    arguments = arguments_for(real_run, real_run / "videos" / "r0.mp4", "it starts", "What is it?")
    assert main([*arguments, "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = train.load_run(real_run / "run", device="cpu")
    store = TrainingStore(real_run / "store")
    [example] = load_examples(store, [query for query in store.queries("train") if query.video_id == "r0"])
    [wanted] = train.predict(trained.model, [example], batch_size=1, k=3)
    ours = [row for row in found if row["query"] == "it starts"]
    assert [row["rank"] for row in ours] == [1, 2, 3]
    for row, (start_s, end_s, score) in zip(ours, wanted, strict=True):
        assert (row["start_s"], row["end_s"], row["score"]) == (start_s, end_s, pytest.approx(score, rel=1e-6))
    assert [row["query"] for row in found] == ["it starts"] * 3 + ["What is it?"] * 3
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{wanted[0][0]:.2f} s to {wanted[0][1]:.2f} s")


def test_there_may_be_fewer_moments_than_asked_for(real_run, capsys):
    """The video has three rows, of which six spans can be made, and some of these overlap too much."""
    assert main([*arguments_for(real_run, real_run / "videos" / "r1.mp4"), "--top", "50", "--json"]) == 0
    assert 1 <= len(json.loads(capsys.readouterr().out)) <= 6


def test_a_second_question_is_answered_without_decoding(real_run, own_folder, no_decoding, capsys):
    """Also under another name, in another folder, and by another run of the same recipe."""
    video = real_run / "videos" / "r0.mp4"
    assert main(arguments_for(real_run, video)) == 0
    first = capsys.readouterr().out
    no_decoding()
    assert main(arguments_for(real_run, video, "what else", "it starts")) == 0
    assert capsys.readouterr().out.splitlines()[1] == first.strip()
    shutil.copy(video, own_folder.parent / "copy.mp4")
    assert main(arguments_for(real_run, own_folder.parent / "copy.mp4")) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("change", ["video", "reading", "recipe"])
def test_other_videos_and_other_ways_are_not_taken_from_the_cache(real_run, own_folder, tmp_path, change, monkeypatch):
    video = shutil.copy(real_run / "videos" / "r0.mp4", tmp_path / "v.mp4")
    arguments = arguments_for(real_run, video)
    assert main(arguments) == 0
    if change == "video":
        write_video(tmp_path / "v.mp4", [i * 40 for i in range(150)], rate=25, width=64, height=64)
    elif change == "reading":
        arguments += ["--on-damage", "keep"]
    else:
        load_run = localize.load_run

        def other(path, *, device):
            trained = load_run(path, device=device)
            trained.recipe["dtype"] = "float32"
            return trained

        monkeypatch.setattr(localize, "load_run", other)
    assert main(arguments) == 0
    assert len([*own_folder.glob("*.h5")]) == 2


def test_wrong_weights_are_refused_even_if_the_features_are_remembered(real_run, own_folder, caplog):
    arguments = arguments_for(real_run, real_run / "videos" / "r0.mp4")
    assert main(arguments) == 0
    assert main([*arguments, "--weights", "random:1"]) == 2
    assert "its features were made with the weights" in caplog.text


def test_damage_in_the_cache_costs_the_work_again(real_run, own_folder, no_decoding, caplog, capsys):
    arguments = arguments_for(real_run, real_run / "videos" / "r0.mp4")
    assert main(arguments) == 0
    first = capsys.readouterr().out
    [path] = own_folder.glob("*.h5")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert "the features are rebuilt" in caplog.text
    no_decoding()
    assert main(arguments) == 0


def test_a_cache_that_cannot_be_written_is_warned_of(real_run, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "file"))
    assert main(arguments_for(real_run, real_run / "videos" / "r0.mp4")) == 0
    assert "the cache cannot be written" in caplog.text


def test_the_least_recently_used_are_forgotten(real_run, own_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "KEPT", 2)
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", [i * 40 for i in range(30 + number)], rate=25, width=64, height=48)
    names = []
    for number in (0, 1, 0, 2):  # 0 is asked about again, so it is 1 that goes
        # the times of the disk may be coarse: what was used before counts as long ago
        for old in own_folder.glob("*.h5"):
            stamp = old.stat().st_mtime_ns - 10**12
            os.utime(old, ns=(stamp, stamp))
        assert main(arguments_for(real_run, tmp_path / f"{number}.mp4")) == 0
        names.append(max(own_folder.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns))
    assert names[0] == names[2] != names[1]
    assert set(own_folder.glob("*.h5")) == {names[0], names[3]}


def test_a_film_with_many_queries_goes_a_few_at_a_time(real_run, monkeypatch):
    """The rows of one video are copied for every query of a batch."""
    sizes = []
    predict = localize.predict

    def watched(model, examples, *, batch_size, k):
        sizes.append(batch_size)
        return predict(model, examples, batch_size=batch_size, k=k)

    monkeypatch.setattr(localize, "predict", watched)
    monkeypatch.setattr(localize, "ROWS_AT_ONCE", 7)
    video = real_run / "videos" / "r0.mp4"
    config = localize.AskConfig(run=real_run / "run", video=video, query=("a", "b", "c"), device="cpu")
    rows = TrainingStore(real_run / "store").num_rows("r0")
    assert [answer.query for answer in localize.run(config).answers] == ["a", "b", "c"]
    assert sizes == [7 // rows]
    monkeypatch.setattr(localize, "ROWS_AT_ONCE", 1)
    assert len(localize.run(config).answers) == 3
    assert sizes[1] == 1


def test_answers_and_the_probabilities_behind_them_take_one_pass(real_run, monkeypatch):
    video = real_run / "videos" / "r0.mp4"
    asked = localize.ask(
        localize.AskConfig(run=real_run / "run", video=video, query=("it", "it starts"), device="cpu", top=2)
    )
    passes, encode_video = [], ExCL.encode_video
    monkeypatch.setattr(ExCL, "encode_video", lambda *given: passes.append(given) or encode_video(*given))
    moments, probabilities = predict_with_rows(asked.trained.model, asked.examples, batch_size=8, k=2)
    np.testing.assert_array_equal(moments, asked.moments)
    assert len(passes) == 1
    for (best, *_), (start, end) in zip(moments, probabilities, strict=True):
        assert start.sum() == pytest.approx(1)
        assert end.sum() == pytest.approx(1)
        assert best[2] == pytest.approx(max(p * q for row, p in enumerate(start) for q in end[row:]))


def test_the_page_of_answers_has_the_video_and_the_probabilities_of_its_rows(real_run, tmp_path, capsys):
    page, video = tmp_path / "pages" / "answer.html", real_run / "videos" / "r0.mp4"
    page.parent.mkdir()
    assert main([*arguments_for(real_run, video, "it starts", "What is <it>?"), "--top", "2", "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    html = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    assert (page.parent / unquote(data["video"])).resolve() == video.resolve()
    assert [query["text"] for query in data["queries"]] == ["it starts", "What is <it>?"]
    shown = [f"{p['start_s']:.2f} s to {p['end_s']:.2f} s" for query in data["queries"] for p in query["predictions"]]
    assert shown == [line.split("   ")[0] for line in lines]
    for query in data["queries"]:
        assert sum(query["start_probability"]) == pytest.approx(1, abs=1e-4)
    assert len(data["thumbnails"]) == 12
    assert "What is <it>?" not in html


def test_a_page_asked_for_costs_no_second_reading_and_no_second_warning(real_run, tmp_path, caplog, monkeypatch):
    read = []
    monkeypatch.setattr(localize, "features", lambda *given, original=localize.features: read.append(1) or original(*given))
    page, video = tmp_path / "answer.html", real_run / "videos" / "r0.mp4"
    arguments = [*arguments_for(real_run, video, "xylophone"), "--out", str(tmp_path / "out"), "--html", str(page)]
    assert main(arguments) == 0
    assert len(read) == 1
    assert sum("words that the training split did not have" in record.getMessage() for record in caplog.records) == 1
    assert "xylophone" in page.read_text(encoding="utf-8")
    assert "xylophone" in (tmp_path / "out" / "answers.json").read_text(encoding="utf-8")
