"""Files that are no good videos, one of each kind that people and networks make of them."""

from __future__ import annotations

import gzip
import io
import pickle
import wave
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from shared_fixtures import write_video


def encode(path: Path, count=75, **settings) -> bytes:
    return write_video(
        path, list(range(count)), time_base=Fraction(1, 25), rate=25, width=64, height=48, **settings
    ).read_bytes()


def sound(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return buffer.getvalue()


def archive(good: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("video.mp4", good)
    return buffer.getvalue()


def picture(path: Path, codec: str) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, {"mjpeg": "yuvj420p", "png": "rgb24", "gif": "rgb8"}[codec]
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24").reformat(format=stream.pix_fmt)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def replaced(content: bytes, at: float, length: int, by: bytes | None = None) -> bytes:
    start = int(len(content) * at)
    filler = by if by is not None else np.random.default_rng(0).bytes(length)
    return content[:start] + filler[:length] + content[start + length :]


def bad_contents(scratch: Path) -> dict[str, bytes]:
    good = encode(scratch / "g.mp4")
    intra = {"preset": "ultrafast", "g": "1"}  # every frame stands for itself, so damage has nowhere to hide
    front = encode(scratch / "f.mp4", options=intra, container_options={"movflags": "faststart"})
    mkv, webm = encode(scratch / "g.mkv"), encode(scratch / "g.webm", codec="libvpx-vp9", options={"deadline": "realtime"})
    avi, flv = encode(scratch / "g.avi", options={"bf": "0"}), encode(scratch / "g.flv")
    gap = write_video(scratch / "gap.mkv", [0, 40, 36_000_000, 36_000_040], width=64, height=48).read_bytes()
    mdat = good.index(b"mdat")
    gif = bytearray(picture(scratch / "p.gif", "gif"))
    gif[6:10] = b"\xff\xff\xff\xff"
    zeros = bytes(len(front))
    return {
        "empty.mp4": b"",
        "text.mp4": b"hello\n" * 100,
        "random.mp4": np.random.default_rng(1).bytes(50_000),
        "zeros.mp4": bytes(50_000),
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "lfs.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "json.mp4": b'{"error": "quota"}',
        "pdf.mp4": b"%PDF-1.4\n%%EOF\n",
        "script.mkv": b"#!/usr/bin/env python3\nprint(1)\n",
        "pickle.avi": pickle.dumps({"a": 1}),
        "archive.mp4": archive(good),
        "packed.mp4": gzip.compress(good),
        "subtitles.mkv": b"1\n00:00:01,000 --> 00:00:02,000\nHello\n",
        "metadata.mp4": b";FFMETADATA1\ntitle=x\n",
        "concat.mp4": b"ffconcat version 1.0\nfile plain.mp4\n",
        "outside.mp4": b"ffconcat version 1.0\nfile ../outside/secret.mp4\n",
        "hls.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nplain.mp4\n#EXT-X-ENDLIST\n",
        "remote.ts": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:PORT/x.ts\n#EXT-X-ENDLIST\n",
        "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
        "sdp.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "picture.mp4": picture(scratch / "p.png", "png"),
        "photo.mp4": picture(scratch / "p.jpg", "mjpeg"),
        "huge.gif.mp4": bytes(gif),
        "sound.mp4": sound(scratch / "s.mp4"),
        "sound.mkv.mkv": sound(scratch / "s.mkv"),
        "wave.avi": wav(),
        "raw.mp4": encode(scratch / "g.h264"),
        "no_index.mp4": good[: len(good) * 6 // 10],
        "cut_front.mp4": front[: len(front) * 6 // 10],
        "cut.mkv": mkv[: len(mkv) // 2],
        "cut_webm.webm": webm[: len(webm) // 2],
        "cut.avi.avi": avi[: len(avi) // 2],
        "head_only.mp4": good[:40],
        "mkv_head.mkv": mkv[:300],
        "flv_head.flv": flv[:13],
        "no_data.mp4": front[: front.index(b"mdat") + 4],
        "zeroed_data.mp4": good[: mdat + 4] + bytes(len(good) - mdat - 4),
        "zero_tenth.mp4": replaced(front, 0.5, len(front) // 10, zeros),
        "noise_in_it.mp4": replaced(front, 0.5, len(front) // 10),
        "noise.mkv.x.mkv": replaced(mkv, 0.4, len(mkv) // 5),
        "bad_start.mp4": replaced(good, 0, 16),
        "ten_hours_gap.mkv": gap,
    }
