"""Draw the README's picture: what a run answers about one video, as an SVG for light and for dark pages.

    python docs/make_timeline.py --run demo/run --store demo/store --video demo/data/videos/demo_0155.mp4 \\
        --out docs/timeline.svg

For every query there is a row with the probabilities of start and end over time, the true moment and the best answer.
"""

import argparse
import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from torchvision.io import encode_jpeg

from excl.datasets.video.backends import sample_frames
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.examples import Example, load_examples, pad_features, pad_tokens
from excl.pipeline.training.trained_run import load_run, predict

WIDTH, LEFT, RIGHT = 900, 16, 16
THUMBNAILS, THUMBNAIL_HEIGHT = 9, 72
ROW_HEIGHT, CURVE_HEIGHT = 112, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
.axis { stroke: #59636e } .true { fill: #1a7f37 } .answer { fill: #0969da } .ground { fill: #eff2f5 }
.start { stroke: #bc4c00; fill: none; stroke-width: 2 } .end { stroke: #8250df; fill: none; stroke-width: 2 }
.start-text { fill: #bc4c00 } .end-text { fill: #8250df } .true-text { fill: #1a7f37 } .answer-text { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .axis { stroke: #9198a1 } .ground { fill: #151b23 }
  .true { fill: #3fb950 } .answer { fill: #4493f8 } .start { stroke: #f0883e } .end { stroke: #ab7df8 }
  .start-text { fill: #f0883e } .end-text { fill: #ab7df8 } .true-text { fill: #3fb950 } .answer-text { fill: #4493f8 }
}
"""


class Timeline:
    """The SVG elements of the picture; time runs from left to right over `duration_s` seconds."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s, self.elements = duration_s, [f"<style>{STYLE}</style>"]

    def x(self, time_s: float) -> float:
        """Return the horizontal place of a time in pixels."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(time_s / self.duration_s, 0), 1)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write words at a place."""
        self.elements.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def bar(self, span_s: Sequence[float], y: float, height: float, kind: str) -> None:
        """Draw a span of time as a bar."""
        left, right = self.x(span_s[0]), self.x(span_s[1])
        self.elements.append(
            f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="{height}" rx="3" class="{kind}"/>'
        )

    def curve(self, times_s: np.ndarray, values: np.ndarray, y: float, kind: str) -> None:
        """Draw values from 0 to 1 over time, 1 being `CURVE_HEIGHT` pixels above y."""
        points = " ".join(f"{self.x(t):.1f},{y - CURVE_HEIGHT * v:.1f}" for t, v in zip(times_s, values, strict=True))
        self.elements.append(f'<polyline points="{points}" class="{kind}"/>')

    def thumbnails(self, video: Path) -> None:
        """Put frames of the video in a line at the top, each at the middle of its part of the time."""
        chunks = sample_frames(video, fps=5, size=128, crop=128)
        frames = [frame for chunk in chunks for frame in chunk.frames]
        width = (WIDTH - LEFT - RIGHT) / THUMBNAILS
        for k in range(THUMBNAILS):
            frame = frames[int((k + 0.5) * len(frames) / THUMBNAILS)]
            jpeg = encode_jpeg(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1), quality=80)
            data = base64.b64encode(jpeg.numpy().tobytes()).decode()
            x = LEFT + (k + 0.5) * width - THUMBNAIL_HEIGHT / 2
            self.elements.append(
                f'<image x="{x:.1f}" y="8" width="{THUMBNAIL_HEIGHT}" height="{THUMBNAIL_HEIGHT}" '
                f'href="data:image/jpeg;base64,{data}"/>'
            )

    def svg(self, height: float, title: str) -> str:
        """Return the whole picture."""
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">\n'
            f"<title>{escape(title)}</title>\n{body}\n</svg>\n"
        )


def probabilities(model: torch.nn.Module, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Return P(start) and P(end) of every row of the example's video, float64 [n] each."""
    features, num_rows = pad_features([example.features])
    token_ids, num_tokens = pad_tokens([example.query.token_ids])
    with torch.inference_mode():
        logits = model(features, num_rows, token_ids, num_tokens)
    start, end = (row_logits[0].double().softmax(0).numpy() for row_logits in logits)
    return start, end


def draw_query(timeline: Timeline, y: float, example: Example, curves: Sequence[np.ndarray], answer: np.ndarray) -> None:
    """Draw one query below `y`: its words, the two curves, the true moment and the answer."""
    query = example.query
    timeline.text(LEFT, y + 14, f"“{query.query}”")
    start_s, end_s, probability = answer
    words = f"{start_s:.1f} s to {end_s:.1f} s (p = {probability:.2f})"
    timeline.text(WIDTH - RIGHT, y + 14, words, "answer-text", "end")
    base = y + 24 + CURVE_HEIGHT
    timeline.bar((0, timeline.duration_s), y + 22, CURVE_HEIGHT + 4, "ground")
    centres_s = (np.asarray(example.row_start_s) + np.asarray(example.row_end_s)) / 2
    for values, kind in zip(curves, ("start", "end"), strict=True):
        timeline.curve(centres_s, values, base, kind)
    timeline.bar((query.start_s, query.end_s), base + 6, 7, "true")
    timeline.bar(answer[:2], base + 15, 7, "answer")


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "store", "video", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    run, store = load_run(options.run, device="cpu"), TrainingStore(options.store)
    examples = [e for e in load_examples(store, store.queries("test")) if e.query.video_id == options.video.stem]
    answers = predict(run.model, examples, batch_size=32)
    timeline = Timeline(float(examples[0].row_end_s[-1]))
    timeline.thumbnails(options.video)
    top = THUMBNAIL_HEIGHT + 16
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        draw_query(timeline, top + number * ROW_HEIGHT, example, probabilities(run.model, example), answer)
    bottom = top + len(examples) * ROW_HEIGHT
    for second in range(0, int(timeline.duration_s) + 1, 5):
        timeline.text(timeline.x(second), bottom + 8, f"{second} s", "small", "middle" if second else "start")
    legend = {"true-text": "■ true moment", "answer-text": "■ answer of ExCL-clf 2-b", "start-text": "― P(start)",
              "end-text": "― P(end)"}  # fmt: skip
    for k, (kind, words) in enumerate(legend.items()):
        timeline.text(LEFT + 180 * k, bottom + 30, words, kind)
    options.out.write_text(timeline.svg(bottom + 40, f"Answers about {options.video.name}"), encoding="utf-8")


if __name__ == "__main__":
    main()
