"""Threshold rules, ensembles and calibrations, cross-fitted on the predictions of real models.

    python benchmarks/decisions.py PREDICTIONS.npz

PREDICTIONS.npz: `targets` (N, 28) and, under any other name but `ids`, the scores (N, 28) of a model. Prints nested
macro F1 (mean over the repeats, and their standard deviation), on the same folds throughout; then what the rules do to
scores that are worth little. Nothing here is fitted on the images it is scored on, but the two constants of the rule
"smooth" were chosen on the predictions that the library's documentation names; --constants shows how the score depends
on them.
"""

import argparse
import time

import numpy as np
import pandas as pd

from protein_atlas.data.labels import LOCATIONS
from protein_atlas.evaluate import thresholds
from protein_atlas.evaluate.cross_fitting import cross_fit
from protein_atlas.evaluate.ensembles import ENSEMBLES
from protein_atlas.evaluate.intervals import difference_interval
from protein_atlas.evaluate.thresholds import RULES


def show(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n{pd.DataFrame.from_dict(rows, orient='index', columns=columns).to_string()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--constants", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.predictions) as file:
        targets = file["targets"].astype(np.uint8)
        models = {name: file[name].astype(np.float64) for name in file.files if name not in ("ids", "targets")}

    def score(scores: np.ndarray | dict[str, np.ndarray], *steps: str | None) -> str:
        found = cross_fit(targets, scores, LOCATIONS, *steps, repeats=arguments.repeats)
        return f"{found.score:.3f} ± {found.spread:.3f} ({found.optimistic:.3f})"

    print(f"{len(targets)} images; nested macro F1 ± deviation over {arguments.repeats} x 5 folds (optimistic)")
    rows = {rule: [score(scores, rule) for scores in models.values()] for rule in RULES}
    show("threshold rules", list(models), rows)
    show(
        "threshold rules after Platt calibration", list(models),
        {
            rule: [score(scores, rule, None, "platt") for scores in models.values()]
            for rule in ("fixed", "ratio", "smooth")
        },
    )
    show(
        "ensembles of all", list(RULES[2:]),
        {how: [score(models, rule, how) for rule in RULES[2:]] for how in ENSEMBLES},
    )

    single = {name: cross_fit(targets, scores, LOCATIONS, repeats=arguments.repeats) for name, scores in models.items()}
    best = max(single, key=lambda name: single[name].score)
    for how in ENSEMBLES:
        together = cross_fit(targets, models, LOCATIONS, ensemble=how, repeats=arguments.repeats)
        print(
            how, "against the best model:",
            difference_interval(targets, together.decisions, single[best].decisions).describe(),
        )

    # Scores that are worth little: half noise, badly scaled, and nothing but noise.
    rng = np.random.default_rng(0)
    scores = models[min(single, key=lambda name: single[name].score)]
    weak = {
        "blurred (0.7 of another image's)": 0.3 * scores + 0.7 * scores[rng.permutation(len(scores))],
        "cubed": scores**3, "square root": scores**0.5, "noise": rng.random(scores.shape),
        "a tenth of the images": None,
    }  # fmt: skip
    tenth = rng.permutation(len(scores))[: len(scores) // 10]
    rows = {}
    for rule in RULES:
        rows[rule] = []
        for values in weak.values():
            some = tenth if values is None else slice(None)
            found = cross_fit(
                targets[some], (scores if values is None else values)[some], LOCATIONS, rule, repeats=arguments.repeats
            )
            rows[rule].append(f"{found.score:.3f} ± {found.spread:.3f}")
    show("weak scores, made of the weakest model's", list(weak), rows)

    started = time.perf_counter()
    thresholds.fit_thresholds(targets, scores, LOCATIONS)
    print(f"\none fit of the default rule: {time.perf_counter() - started:.2f} s")

    if arguments.constants:
        rows = {}
        for calibrated in (10, 20, 30, 50, 100):
            for width in (0.7, 1.0, 1.4, 2.0, 3.0):
                thresholds._CALIBRATED, thresholds._WIDTH = calibrated, width
                rows[f"weight {calibrated}, width {width}"] = [score(values) for values in models.values()]
        show("the constants of smooth", list(models), rows)


if __name__ == "__main__":
    main()
