"""Ensembles of models that are alike, weak, badly calibrated or worthless: is the default as good as the best alone?

    python benchmarks/mixtures.py PREDICTIONS.npz [--recipes OUT --data DIR] [--repeats 3] [--few 24 50 200 1000]

PREDICTIONS.npz: `targets` (N, K) and, under any other name but `ids`, the scores (N, K) of a model; OUT: what
`recipe.py train OUT --data DIR` left. For each mixture the nested macro F1 (5 folds, `--repeats` times; weights and
thresholds are fitted without the images decided; groups whole) of the best model, of the plain mean, and of the
default; the default's difference from the best, with its 95 % interval (paired bootstrap over images or groups); the
weights on all images; and the seconds of one fit of them, of processor time. The best model is that of the highest
average precision, in hindsight; of equal ones, as a model and its cube are, the first. With --few instead, the three's
mean average precision on up to 2,000 other images where weights are fitted on so many, mean over ten draws.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import expit
from score_sets import Scored, read_predictions, read_recipes

from protein_atlas.evaluate.calibration import finite_logit
from protein_atlas.evaluate.cross_fitting import CrossFit, cross_fit
from protein_atlas.evaluate.ensembles import fit_ensemble
from protein_atlas.evaluate.intervals import difference_interval
from protein_atlas.evaluate.metrics import average_precision_per_label, macro_average_precision

BENT = {
    "cube": lambda scores: scores**3, "square root": lambda scores: scores**0.5,
    "logits - 2": lambda scores: expit(finite_logit(scores) - 2),
    "logits + 2": lambda scores: expit(finite_logit(scores) + 2),
    "logits x 3": lambda scores: expit(finite_logit(scores) * 3),
}  # fmt: skip


def mixtures(of: Scored) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Name and models of each mixture that is made of the models of a set."""
    rng, targets = np.random.default_rng(0), of.targets
    worth = {name: macro_average_precision(targets, scores) for name, scores in of.models.items()}
    ranked = sorted(worth, key=lambda name: -worth[name])
    best, others = of.models[ranked[0]], {name: of.models[name] for name in ranked[1:]}
    noise = {f"noise {number}": rng.random(best.shape) for number in range(8)}
    bent = {name: bend(best) for name, bend in BENT.items()}

    def blurred(share: float) -> np.ndarray:
        return (1 - share) * best + share * best[rng.permutation(len(best))]

    yield "all", of.models
    yield "the best and its copy", {"best": best, "copy": best}
    for number in (1, 3, 8):
        yield f"the best, {number} noise", {"best": best, **dict(list(noise.items())[:number])}
    for name, scores in bent.items():
        yield f"the best and its {name}", {"best": best, name: scores}
    yield "the best, bent in all ways", {"best": best, **bent}
    weak = {"cube": bent["cube"], "blurred": blurred(0.7), "noise": noise["noise 0"]}
    yield "the best, cube, blurred, noise", {"best": best, **weak}
    yield "the same in another order", {**weak, "best": best}
    yield "the best, three weak", {"best": best, **{f"blurred {share}": blurred(share) for share in (0.3, 0.5, 0.7)}}
    apart = [average_precision_per_label(targets, scores) for scores in (best, others[ranked[1]])]
    few = np.argsort(np.nan_to_num(apart[0] - apart[1], nan=1))[: max(1, targets.shape[1] // 5)]
    expert = noise["noise 0"].copy()
    expert[:, few] = others[ranked[1]][:, few]
    yield f"the best, one that knows {len(few)} labels", {"best": best, "expert": expert}
    yield "all, 3 noise", {**of.models, **dict(list(noise.items())[:3])}
    crooked = zip(others, list(BENT.values())[1:] * len(others), strict=False)
    yield "all, bent each in another way", {ranked[0]: best, **{name: bend(others[name]) for name, bend in crooked}}
    if len(ranked) >= 6:
        yield "three strong, three weak", {name: of.models[name] for name in (*ranked[:3], *ranked[-3:])}


def fitted_on_few(of: Scored, models: dict[str, np.ndarray], images: int, draws: int = 10) -> np.ndarray:
    """Mean average precision (3,) on other images: of the best model there, the mean, and the default."""
    found = []
    for seed in range(draws):
        order = np.random.default_rng((seed, images)).permutation(len(of.targets))
        few, others = order[:images], order[images : images + 2000]
        fitted = fit_ensemble(of.targets[few], {name: scores[few] for name, scores in models.items()})
        seen = {name: scores[others] for name, scores in models.items()}
        three = np.mean(list(seen.values()), axis=0), fitted.combine(seen)
        alone = max(macro_average_precision(of.targets[others], scores) for scores in seen.values())
        found.append([alone, *(macro_average_precision(of.targets[others], scores) for scores in three)])
    return np.mean(found, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--recipes", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", nargs="+", type=int)
    arguments = parser.parse_args()
    sets = {"three networks": read_predictions(arguments.predictions)}
    if arguments.recipes is not None:
        sets |= dict(read_recipes(arguments.recipes, arguments.data))
    for of_set, of in sets.items():
        vocab = tuple(f"label {k}" for k in range(of.targets.shape[1]))
        known: dict[bytes, CrossFit] = {}

        def nested(
            scores: np.ndarray | dict[str, np.ndarray], of: Scored = of, vocab: tuple = vocab, known: dict = known
        ) -> CrossFit:
            alone = isinstance(scores, np.ndarray)
            key = scores.tobytes() if alone else b""
            if key not in known:
                known[key] = cross_fit(of.targets, scores, vocab, repeats=arguments.repeats, groups=of.groups)
            return known[key] if alone else known.pop(key)

        print(f"\n{of_set}: {len(of.targets)} images\n")
        if arguments.few:
            print("| mixture | images | best alone | mean | default |\n" + "| --- " * 5 + "|")
            for name, models in mixtures(of):
                for images in arguments.few:
                    shown = " | ".join(f"{one:.3f}" for one in fitted_on_few(of, models, images))
                    print(f"| {name} | {images:,} | {shown} |", flush=True)
            continue
        print("| mixture | best alone | mean | default | its difference | seconds | weights |")
        print("| --- " * 7 + "|")
        for name, models in mixtures(of):
            worth = {model: round(macro_average_precision(of.targets, one), 4) for model, one in models.items()}
            best = nested(models[max(worth, key=lambda model, worth=worth: worth[model])])
            three = best, nested(np.mean(list(models.values()), axis=0)), nested(models)
            difference = difference_interval(of.targets, three[2].decisions, best.decisions, groups=of.groups)
            started = time.process_time()
            weights = fit_ensemble(of.targets, models).weights
            seconds = time.process_time() - started
            told = ", ".join(f"{model} {share:.2f}" for model, share in weights.items() if share)
            scores = " | ".join(f"{found.score:.3f}" for found in three)
            print(f"| {name} | {scores} | {difference} | {seconds:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
