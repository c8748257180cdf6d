"""The commands that mend or convert a video which is not read as it is, for error messages.

Those of ffmpeg were run with version 5.1 (`tests/video/test_odd_files.py`): they write every frame of the file at its time,
to a millisecond, but for frames that come late and are said to be left out. The output is a file that does not exist yet.
"""

from __future__ import annotations

import itertools
import os
import shlex
from fractions import Fraction
from pathlib import Path

WITHOUT_TIMES = frozenset(("h264", "hevc", "m4v", "mpegvideo", "obu"))
NOT_COPIED = frozenset(("apng", "rm"))  # Matroska has no place for the streams in it
COPY_TO_MATROSKA = "-map 0:V -map '0:a?' -c copy"
# All frames as they come, however far apart, each at its time: otherwise ffmpeg rounds times to its idea of the rate.
EVERY_FRAME = "-fps_mode passthrough -enc_time_base 1/1000 -c:v libx264 -crf 12"


def with_continued_clock(
    path: Path, stream_index: int, *, rate: Fraction, late_s: Fraction, back_s: Fraction, max_gap_s: float, interlaced: bool
) -> str:
    """Return the command by which the clock of a video continues where it starts again `back_s` earlier.

    The frame before the restart then lasts one period of `rate`. `late_s` is how long after the start of the container the
    first frame comes: without the sound that started it, that frame has to stand from the beginning. Smaller steps back
    than this one are not touched, so that frames that come late too are not moved without a word.
    """
    touched_s = min(Fraction(1), back_s / 2) if back_s > 0 else Fraction(1)
    goes_on = f"gte(PTS-PREV_INPTS,-{float(touched_s):g}/TB)*lte(PTS-PREV_INPTS,{max_gap_s:.15g}/TB)"
    shift = f"st(0,ld(0)+if(not(N)+{goes_on},0,PREV_INPTS-PTS+1/({rate}*TB)))"
    times = f"setpts='{shift};if(N,PTS-STARTPTS+ld(0)+{_seconds(late_s)}/TB,0)'"
    return _recode(path, stream_index, times, interlaced=interlaced)


def without_late_frames(path: Path, stream_index: int, *, late_s: Fraction, interlaced: bool) -> str:
    """Return the command that leaves out frames which come at most a second late, and no other frame."""
    in_time = "isnan(prev_selected_pts)+gt(pts,prev_selected_pts)+lt(pts,prev_selected_pts-1/TB)"
    filters = f"select='{in_time}',setpts='if(N,PTS-STARTPTS+{_seconds(late_s)}/TB,0)'"
    return _recode(path, stream_index, filters, interlaced=interlaced)


def _seconds(late_s: Fraction) -> str:
    return f"{max(0.0, float(late_s)):.9g}"


def _recode(path: Path, stream_index: int, filters: str, *, interlaced: bool) -> str:
    fields = " -flags +ildct+ilme" if interlaced else ""
    # Without these two options ffmpeg corrects the clock itself, by which two frames come to have one time.
    return (
        f'ffmpeg -copyts -correct_ts_overflow 0 -i {_url(path)} -map 0:{stream_index} -vf "{filters}" {EVERY_FRAME}{fields} '
        f"{_url(_unused(path, '-mended.mkv'))}"
    )


def conversion(path: Path, container: str) -> tuple[str, str]:
    """Return the command that converts a file whose container is not read, and a remark on it."""
    source, target = _url(path), _url(_unused(path, ".mkv"))
    if container == "webp_anim":
        webp, gif = (shlex.quote(str(name.absolute())) for name in (path, _unused(path, ".gif")))
        return f"convert {webp} {gif}", " to hundredths of a second (of ImageMagick: few versions of FFmpeg read it)"
    if container in WITHOUT_TIMES:
        times = "-vf 'settb=1/90000,setpts=N/(RATE*TB)'"
        return f"ffmpeg -i {source} {times} {EVERY_FRAME} {target}", ", where RATE is its frames a second"
    if container in NOT_COPIED:
        return f"ffmpeg -i {source} -map 0:V -map '0:a?' {EVERY_FRAME} {target}", ""
    return f"ffmpeg -i {source} {COPY_TO_MATROSKA} {target}", ""


def playable_copy(path: Path) -> str:
    """Return the command that writes a copy which every browser plays, with the same frames at the same times.

    The copy has the same name, by which annotations know it, in a folder next to the video's own.
    """
    folder = path.absolute().parent.with_name(f"{path.absolute().parent.name}-for-browsers")
    sizes = "'scale=trunc(iw/2)*2:trunc(ih/2)*2'"  # which H.264 in yuv420p needs
    target = _url(folder / f"{path.stem}.mp4")
    return (
        f"mkdir -p {shlex.quote(str(folder))} && ffmpeg -i {_url(path.absolute())} -map 0:V:0 -map '0:a:0?' {EVERY_FRAME} "
        f"-vf {sizes} -pix_fmt yuv420p -c:a aac {target}"
    )


def _url(path: Path) -> str:
    """Return the path as ffmpeg takes it, whatever it begins with, quoted for a shell."""
    return shlex.quote(f"file:{path}")


def _unused(path: Path, end: str) -> Path:
    """Return a path next to `path` with another end, of a file that does not exist."""
    paths = (path.with_name(f"{path.stem}{number or ''}{end}") for number in itertools.count())
    return next(path for path in paths if not os.path.lexists(path))
