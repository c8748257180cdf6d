"""Draw what expected times do where several moments are possible, as an SVG for light and for dark pages.

    python docs/make_expected_times.py --run demo/reg --store demo/store --out docs/expected_times.svg

It takes two test queries of a regression run: the one that the expected times miss most, of those that the most probable
span hits, and the one that they fit best. For each it draws P(start) and P(end), the true moment, the expected times, which
are the answer, and the most probable span.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from make_timeline import CURVE_HEIGHT, LEFT, RIGHT, WIDTH, Timeline

from excl.models.excl import temporal_iou, top_spans
from excl.models.excl.answers import RowTimes
from excl.models.excl.expected_times import conditional_scores
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.examples import Example, load_examples, pad_features, pad_tokens
from excl.pipeline.training.trained_run import load_run, predict

ROW_HEIGHT = 126


class Spread:
    """The probabilities of one query's start and end, float64 [n] each, and its most probable span in seconds."""

    def __init__(self, model: torch.nn.Module, example: Example) -> None:
        features, num_rows = pad_features([example.features])
        token_ids, num_tokens = pad_tokens([example.query.token_ids])
        with torch.inference_mode():
            start_logits, end_logits = (x.double() for x in model(features, num_rows, token_ids, num_tokens))
            start_scores, end_scores = conditional_scores(start_logits, end_logits)
            self.start = start_logits[0].softmax(0).numpy()
            self.end = (end_scores + start_scores.logcumsumexp(1))[0].exp().numpy()
        times = RowTimes(np.asarray(example.row_start_s), np.asarray(example.row_end_s))
        [(first, last)] = top_spans(start_scores[0].numpy(), end_scores[0].numpy(), times, k=1)
        self.span_s = np.array([times.start_s[first], times.end_s[last]])


def draw(y: float, example: Example, spread: Spread, expected: np.ndarray) -> Timeline:
    """Draw one query below `y`, on a time axis of its own."""
    query = example.query
    timeline = Timeline(float(example.row_end_s[-1]))
    timeline.elements.clear()  # the style is drawn once
    timeline.text(LEFT, y + 14, f"“{query.query}”")
    base = y + 24 + CURVE_HEIGHT
    timeline.bar((0, timeline.duration_s), y + 22, CURVE_HEIGHT + 4, "ground")
    highest = max(spread.start.max(), spread.end.max())
    timeline.curve(np.asarray(example.row_start_s), spread.start / highest, base, "start")
    timeline.curve(np.asarray(example.row_end_s), spread.end / highest, base, "end")
    bars = (((query.start_s, query.end_s), "true"), (expected[:2], "answer"), (spread.span_s, "span"))
    for number, (span_s, kind) in enumerate(bars):
        timeline.bar(span_s, base + 6 + 9 * number, 7, kind)
    for second in range(0, int(timeline.duration_s) + 1, 5):
        timeline.text(timeline.x(second), base + 46, f"{second} s", "small", "middle" if second else "start")
    return timeline


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    run, store = load_run(options.run, device="cpu"), TrainingStore(options.store)
    examples = load_examples(store, store.queries("test"))
    expected = predict(run.model, examples, batch_size=32)
    spreads = [Spread(run.model, example) for example in examples]
    truth = np.array([[example.query.start_s, example.query.end_s] for example in examples])
    of_expected = temporal_iou(expected[:, :2], truth)
    of_span = temporal_iou(np.stack([spread.span_s for spread in spreads]), truth)
    chosen = [int((of_span - of_expected).argmax()), int(of_expected.argmax())]
    picture = Timeline(1.0)
    picture.elements.append("<style>.span { fill: #8250df }</style>")
    for number, index in enumerate(chosen):
        picture.elements += draw(number * ROW_HEIGHT, examples[index], spreads[index], expected[index]).elements
    legend = {
        "true-text": "■ true moment",
        "answer-text": "■ expected times, the answer",
        "end-text": "■ most probable span",
        "start-text": "― P(start)",
    }
    bottom = len(chosen) * ROW_HEIGHT + 16
    for k, (kind, words) in enumerate(legend.items()):
        picture.text(LEFT + 200 * k, bottom, words, kind)
    picture.text(WIDTH - RIGHT, bottom, "― P(end)", "end-text", "end")
    title = "Two queries of a regression model: probabilities, expected times, and the most probable span"
    options.out.write_text(picture.svg(bottom + 12, title), encoding="utf-8")


if __name__ == "__main__":
    main()
