__version__ = "0.1.0"

# `from protein_atlas import *` gives the names below: those that the tutorials use. Everything else is imported from
# its room, as in `from protein_atlas.data.duplicates import hash_images`. A name is imported when it is first asked
# for, so that `import protein_atlas.data.splits` needs neither torch nor fastai. `cnn_learner` is this library's
# `rgby_learner`: it shadows fastai's function of that name, where fastai.vision.all is imported before.
import warnings as _warnings
from importlib import import_module as _import_module

_STAR = {
    "system.errors": ("ProteinAtlasError", "LabelError", "ImageError", "BundleError", "PredictionError"),
    "system.figures": ("NotebookFigure",),
    "system.ray": ("RayCluster",),
    "data.labels": ("LOCATIONS", "read_labels", "encode_labels", "decode_targets", "format_labels", "label_set_counts"),
    "data.images": ("CHANNELS", "Layout", "open_image", "save_image"),
    "data.folders": ("ImageFolder",),
    "data.tables": ("ImageTable",),
    "data.store": ("ImageStore",),
    "data.packing": ("pack_images",),
    "data.phantoms": ("simulate_phantoms", "simulate_field", "phantom_sheet"),
    "data.pictures": ("image_sheet",),
    "data.duplicates": ("find_duplicates", "duplicate_groups", "duplicate_report", "duplicates_figure"),
    "data.groups": ("hpa_groups",),
    "data.splits": ("HOLDOUT", "balanced_split", "balanced_folds"),
    "data.split_audit": ("split_audit",),
    "data.sampling": ("label_weights", "rarity_weights"),
    "evaluate.metrics": ("macro_f1", "macro_average_precision", "label_report"),
    "evaluate.calibration": ("reliability_figure",),
    "evaluate.thresholds": ("Thresholds", "fit_thresholds"),
    "evaluate.cross_fitting": ("cross_fit", "compare_rules"),
    "evaluate.intervals": ("score_interval", "difference_interval", "label_intervals", "label_intervals_figure"),
    "evaluate.confusion": ("confusion_table", "confusion_figure", "top_confusions"),
    "evaluate.importance": ("channel_importance",),
    "evaluate.interpretation": ("MultiLabelInterpretation", "precision_recall_figure"),
    "predict.load": ("load_predictor", "load_onnx"),
    "predict.predictor": ("ensemble",),
    "predict.submissions": ("read_ids", "write_submission"),
    "predict.screening": ("screen",),
    "vision.core": ("TensorRGBY",),
    "vision.data": ("RGBYBlock", "BalancedSplitter", "protein_datablock", "oversampled_dataloaders"),
    "vision.augment": ("rgby_transforms",),
    "vision.losses": ("MultiLabelFocalLoss",),
    "vision.metrics": ("MacroF1", "MacroAveragePrecision"),
    "vision.models": ("small_resnet",),
    "vision.network": ("load_bundle",),
    "vision.attribution": ("activation_maps", "maps_figure", "randomise"),
    "callback.focal": ("FocalLossCallback",),
    "export.onnx": ("export_bundle",),
    "train.learner": ("cnn_learner", "rgby_learner"),
    "train.settings": ("RunSettings",),
    "train.run": ("train_run",),
}

__all__ = [name for names in _STAR.values() for name in names]


def __getattr__(name):
    for module, names in _STAR.items():
        if name in names:
            with _warnings.catch_warnings():
                # What fastai's own import uses, and torch has deprecated: nothing that a user could change.
                _warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                return getattr(_import_module(f"{__name__}.{module}"), name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; what the star does not bring is imported from its room, "
        "such as protein_atlas.data.splits"
    )


def __dir__():
    return sorted([*globals(), *__all__])
