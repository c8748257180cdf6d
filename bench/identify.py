"""How many of thirty recipes `excl identify` names, made by code that shares nothing with its search.

    python bench/identify.py VIDEO … [--crop 32] [--only 0,5] [--out identify.json]

Each recipe makes features of the videos: FFmpeg writes them at the recipe's rate, frames are scaled as OpenCV does it, a
literal I3D with the weights random:0 sees them (tests/published_features.py). `excl identify` is given these features, the
original videos and the weights. A line a recipe: whether rate, window, hop, picture, colours and sampling are named, whether
the rows are equal by the verdict of `excl compare`, the distance, seconds. Pictures are in proportion to the crop: a smaller
one costs less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from published_features import Published, publish

from excl.models.i3d.weights import load_weights
from excl.pipeline.identify.identify import IdentifyConfig, ends_that_fit, run


def recipes(crop: int) -> list[Published]:
    """Return thirty recipes: rates, pictures and rows as they are usual, mixed."""
    short, square, wide = round(crop * 256 / 224), f"{crop}x{crop}", f"{round(crop * 340 / 224)}x{round(crop * 256 / 224)}"
    return [
        Published(5, short),
        Published(5, crop),
        Published(5, square),
        Published(10, short),
        Published(24, "up"),
        Published(25, short),
        Published(30, short),
        Published(16, short),
        Published(None, short),
        Published(25, short, 16, 16),
        Published(25, wide, 16, 16),
        Published(24, "up", 24, 24, mean=False),
        Published(24, "up", 24, 24),
        Published(None, crop, 16, 16, "pad"),
        Published(None, short, 64, 64),
        Published(None, short, 16, 8),
        Published(30, short, 32, 32, "pad"),
        Published(30, square, 16, 16),
        Published(30, short, 64, 16),
        Published(16, short, 16, 16),
        Published(16, short, 16, 4, "pad"),
        Published(15, short, 16, 8, "pad"),
        Published(12, crop, 24, 24),
        Published(8, short, 16, 16, "pad"),
        Published(10, square, 32, 16),
        Published(25, short, 16, 16, colours="bgr"),
        Published(5, short, colours="0..1"),
        Published(25, short, 64, 32, normalised=True),
        Published(5, short, sampled=True),
        Published(25, short, 16, 16, crf=23),
    ]


def main() -> None:
    """Try the recipes and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state = load_weights("random:0").state_dict
    numbers = [int(number) for number in arguments.only.split(",") if number] or range(len(recipes(arguments.crop)))
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for video in arguments.videos:
            (folder / "videos" / video.name).symlink_to(video.absolute())
        for number in numbers:
            recipe = recipes(arguments.crop)[number]
            path = publish(arguments.videos, recipe, state, folder / "made", crop=arguments.crop)
            began = time.monotonic()
            result = run(IdentifyConfig(path, videos=folder / "videos", weights="random:0", crop=arguments.crop))
            seconds = time.monotonic() - began
            results.append(
                {
                    "number": number,
                    "recipe": str(recipe),
                    "seconds": round(seconds, 1),
                    **judged(recipe, result, arguments.crop),
                }
            )
            print(json.dumps(results[-1]), flush=True)
    named = sum(result["named"] for result in results)
    print(f"{named} of {len(results)} named, {sum(result['equal'] for result in results)} equal by the verdict")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


def judged(recipe: Published, result, crop: int) -> dict[str, object]:
    """Return what of a recipe was named by the search, and its rank by row counts alone."""
    making = result.search.best.making
    rule = making.candidate.rule
    mean = recipe.mean or recipe.window <= 16
    of_rows = (recipe.fps, recipe.window, recipe.hop or 8)
    size = f"{crop + 2}-upscale-only" if recipe.size == "up" else str(recipe.size)
    colours = {"rgb": "RGB from -1 to 1", "bgr": "BGR from -1 to 1", "0..1": "RGB from 0 to 1"}[recipe.colours]
    ends = {candidate.rule.end for candidate in ends_that_fit(making, result.fit)}
    checks = {
        "rate": making.candidate.fps == recipe.fps,
        "window": (rule.window, rule.hop) == of_rows[1:] and (rule.rows == 1) == mean,
        "end": not recipe.window or (recipe.end in ends) or (recipe.end == "pad" and bool(ends & {"next", "every"})),
        "picture": str(making.geometry) == size,
        "colours": making.values == colours,
        "sampling": recipe.fps is None or making.nearest != recipe.sampled,
    }
    order = [(c.fps, c.rule.window, c.rule.hop) for c in result.fit.candidates]
    rank = order.index(of_rows) + 1 if of_rows in order else None
    return {
        "named": all(checks.values()),
        "wrong": [name for name, right in checks.items() if not right],
        "equal": result.search.is_equal,
        "distance": round(result.search.best.distance, 5),
        "verdict": result.search.verdict.verdict.name,
        "rank_by_counts": rank,
        "tried": result.search.num_tried,
        "answer": str(making),
    }


if __name__ == "__main__":
    main()
