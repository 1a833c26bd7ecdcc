"""What Keras gives on the backend that KERAS_BACKEND names, as JSON on the last line.

Run by test_keras.py, in a process of its own.

    python keras_on_backend.py FOLDER [SAVED_MODEL IMAGES]

FOLDER: phantoms of 64 px. SAVED_MODEL, IMAGES: to be scored by TensorFlow.
"""
import json
import sys
from pathlib import Path

import numpy as np

from protein_atlas.data.folders import ImageFolder
from protein_atlas.data.images import CHANNELS
from protein_atlas.data.labels import read_labels
from protein_atlas.data.splits import balanced_split
from protein_atlas.evaluate.thresholds import Thresholds
from protein_atlas.keras.backend import keras
from protein_atlas.keras.data import CountBatches, oversampled_datasets
from protein_atlas.keras.losses import MacroF1Score, MultiLabelFocalCrossentropy
from protein_atlas.keras.models import find_keras_architecture, keras_body, keras_model, leaf_layers, trained_layers
from protein_atlas.keras.predict import keras_predictor
from protein_atlas.predict.load import load_saved_model

# Of ImageNet: what "pretrained" means here.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FAMILIES = ("MobileNet", "ResNet50", "EfficientNetV2B0")  # values from -1 to 1; blue before red; prepared within


def surgery(name: str, folder: Path) -> dict:
    """The largest difference of a network's features before and after, and of its other weights."""
    arch, file = find_keras_architecture(name), folder / f"{name}.weights.h5"
    old = arch(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in leaf_layers(old):
        if isinstance(layer, keras.layers.BatchNormalization):
            rng = np.random.default_rng(0)
            layer.set_weights(
                [weight + 0.1 * rng.random(weight.shape, dtype=np.float32) for weight in layer.get_weights()]
            )
    old.save_weights(file)
    new = keras_body(name, CHANNELS, 64, weights=file)
    picture = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    prepared = sys.modules[arch.__module__].preprocess_input(picture.copy())
    expected = np.asarray(old.predict(prepared, verbose=0))
    images = np.concatenate([(picture / 255 - MEAN) / STD, np.zeros((2, 64, 64, 1))], axis=-1).astype(np.float32)
    found = np.asarray(new.predict(images, verbose=0))
    layers = zip(trained_layers(old)[1:], trained_layers(new.layers[-1])[1:])
    equal = all(np.array_equal(*pair) for one, two in layers for pair in zip(one.get_weights(), two.get_weights()))
    return {"difference": float(np.abs(found - expected).max() / np.abs(expected).max()), "equal": equal}


def focal(gamma: float, weights: list[float] | None) -> float:
    """The largest difference from the formula, in double precision, of the loss of logits and its gradient's sign."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 3, (64, 5)), rng.random((64, 5))
    present, absent = np.logaddexp(0, -x), np.logaddexp(0, x)
    loss = y * np.exp(-gamma * absent) * present + (1 - y) * np.exp(-gamma * present) * absent
    expected = (loss * (weights or 1)).sum(axis=1).mean()
    got = MultiLabelFocalCrossentropy(gamma, weights, from_logits=True)(y.astype(np.float32), x.astype(np.float32))
    return abs(float(keras.ops.convert_to_numpy(got)) - expected) / expected


def road(data: Path, folder: Path) -> dict:
    """compile, fit, save, load, predict."""
    table = read_labels(data / "train.csv")
    split = balanced_split(table.targets, 0.25, strict=False)
    train, valid = oversampled_datasets(data / "train", table, split, bs=16)
    keras.utils.set_random_seed(0)
    model = keras_model("small_resnet", train.table.targets, size=64, pretrained=False, dropout=0.1)
    model.compile(keras.optimizers.Adam(3e-3), MultiLabelFocalCrossentropy(), metrics=[MacroF1Score(0.1)])
    counted = [CountBatches(valid)]
    history = model.fit(train, validation_data=valid, epochs=3, callbacks=counted, verbose=0).history
    scores = np.asarray(model.predict(valid, verbose=0))
    model.save(folder / "model.keras")
    again = np.asarray(keras.models.load_model(folder / "model.keras").predict(valid, verbose=0))
    limits = Thresholds(np.full(len(table.vocab), 0.1), table.vocab, "fixed")
    predicted = keras_predictor(model, valid, limits).predict(data / "train", valid.table.ids.tolist())
    from protein_atlas.evaluate.metrics import macro_f1

    return {
        "losses": history["loss"], "metric": history["val_macro_f1"][-1],
        "macro_f1": macro_f1(valid.table.targets, scores >= np.float32(0.1)),
        "reloaded": float(np.abs(again - scores).max()), "predictor": float(np.abs(predicted.scores - scores).max()),
    }  # fmt: skip


def main(data: Path, saved_model: Path | None = None, images: Path | None = None) -> None:
    folder = data.parent
    found = {
        "backend": keras.backend.backend(),
        "surgery": {name: surgery(name, folder) for name in FAMILIES},
        "focal": max(focal(gamma, weights) for gamma in (0.0, 0.5, 2.0) for weights in (None, [1, 2, 0.5, 3, 1])),
        "road": road(data, folder),
    }
    if saved_model is not None:
        predicted = load_saved_model(saved_model).predict(images, ImageFolder(images).ids)
        found["saved_model"] = {"scores": predicted.scores.tolist(), "decisions": predicted.decisions.tolist()}
    found["torch"] = "torch" in sys.modules
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
