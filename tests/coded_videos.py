"""Videos of every codec and structure of groups, in which every frame differs from the others everywhere."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

X264 = {"preset": "veryfast", "crf": "20"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=error:keyint=15:bframes=3:b-pyramid=1"}
KINDS = {  # name: (file, codec, options)
    "h264": ("a.mp4", "libx264", {**X264, "bf": "3", "g": "250"}),
    "h264, many slices": ("a.mp4", "libx264", {**X264, "bf": "3", "g": "20", "slices": "4"}),
    "h264, closed groups": ("a.mkv", "libx264", {**X264, "bf": "0", "g": "10"}),
    "h264, open groups": ("a.mkv", "libx264", {**X264, "bf": "3", "g": "10", "x264-params": "open-gop=1"}),
    "h264, intra refresh": ("a.mp4", "libx264", {**X264, "bf": "2", "g": "10", "x264-params": "intra-refresh=1"}),
    "h264, interlaced": ("a.mkv", "libx264", {**X264, "bf": "2", "g": "12", "flags": "+ildct+ilme"}),
    "h264, transport stream": ("a.ts", "libx264", {**X264, "bf": "3", "g": "12"}),
    "h264, intra only": ("a.mp4", "libx264", {"preset": "ultrafast", "g": "1"}),
    "hevc": ("a.mp4", "libx265", X265),
    "hevc, transport stream": ("a.ts", "libx265", X265),
    "vp9": ("a.webm", "libvpx-vp9", {"deadline": "realtime", "g": "12"}),
    "vp8": ("a.webm", "libvpx", {"deadline": "realtime", "g": "12"}),
    "mpeg4, B-frames": ("a.mkv", "mpeg4", {"bf": "2", "g": "12"}),
    "mpeg4": ("a.mp4", "mpeg4", {"bf": "0", "g": "12"}),
    "mpeg2": ("a.mkv", "mpeg2video", {"bf": "0", "g": "12"}),
    "mjpeg": ("a.mkv", "mjpeg", {}),
    "flv": ("a.flv", "flv", {}),
}


def moving(path, codec, options, *, count=90):
    """A video in which every frame differs from the others everywhere, so that a wrong reference shows."""
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 256, (200, 200, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(count):
            picture = np.ascontiguousarray(texture[number : number + 64, 2 * number : 2 * number + 96])
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")  # the encoder converts it, with one set-up for all
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
