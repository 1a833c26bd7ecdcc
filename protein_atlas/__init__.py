__version__ = "0.1.0"

# `from protein_atlas import *` gives the public names of the modules below, and only those. They are imported when they
# are first asked for, so that `import protein_atlas.splits` needs neither torch nor fastai.
from importlib import import_module as _import_module

_PUBLIC = {
    "system.errors": (
        "ProteinAtlasError", "StorageError", "ProcessError", "LabelError", "ImageError", "ScoreError", "BundleError", "PredictionError", "ReportError", "NetworkError", "TrainingError", "DivergenceError", "AppError",
    ),
    "system.files": (
        "check_file_place", "whole_file", "check_new_folder", "sole_writer",
        "whole_folder", "id_fault", "named_errors",
    ),
    "system.figures": ("NotebookFigure",),
    "data.decode": ("read_gray", "decode_gray"),
    "data.labels": (
        "LOCATIONS", "label_set_counts", "label_counts", "check_vocab", "parse_labels", "format_labels",
        "encode_labels", "decode_targets", "check_targets", "LabelTable", "read_table", "parse_table", "read_labels",
    ),
    "system.ray": ("RayCluster"),
    "system.processes": ("interrupts_held", "map_in_processes", "map_in_threads"),
    "data.resampling": ("resize_plane",),
    "data.symmetries": ("d4",),
    "data.images": (
        "CHANNELS", "HPA_LAYOUT", "PALETTE", "Layout", "ImageFiles", "ImageFolder", "ImageTable", "open_images", "open_image", "resize_image", "save_image",
        "channel_colors", "composite", "channel_statistics", "SAFE_PALETTE", "display_levels", "target_size", "channel_sums", "open_at_sizes", "files_stamp",
        "size_and_version", "unstretched", "read_together",
    ),
    "system.storage": ("is_url", "FileFacts", "LocalFolder", "RemoteFolder", "open_folder", "RemoteFile", "fetch_groups"),
    "data.phantoms": ("simulate_field", "draw_targets", "simulate_phantoms", "phantom_sheet"),
    "data.pictures": (
        "bar_length", "draw_image", "compare_labels", "draw_caption", "sheet_axes", "picture_aspect",
        "image_sheet", "results_figure",
    ),
    "data.duplicates": (
        "ImageHashes", "hash_images", "duplicate_candidates", "verify_duplicates", "find_duplicates",
        "cluster_pairs", "duplicate_groups", "duplicate_report", "duplicates_figure",
    ),
    "data.groups": ("hpa_groups", "join_groups"),
    "data.splits": (
        "balanced_split", "balanced_folds", "HOLDOUT", "SplitWarning", "SplitAudit", "split_audit",
    ),
    "data.sampling": ("spread_rows", "prevalence_logits", "label_weights", "rarity_weights", "duplicate_rare"),
    "data.stem_weights": ("stem_mixture", "adapt_stem_weight"),
    "evaluate.metrics": (
        "check_scores", "f1_per_label", "macro_f1", "average_precision_per_label",
        "macro_average_precision", "label_report", "f1_from_counts", "micro_f1", "label_mean", "roc_auc_per_label",
        "macro_roc_auc",
    ),
    "evaluate.calibration": (
        "reliability_table", "calibration_error", "reliability_figure", "Calibration",
        "fit_calibration", "CALIBRATION_METHODS", "finite_logit",
    ),
    "evaluate.ensembles": ("ENSEMBLES", "Ensemble", "fit_ensemble"),
    "evaluate.intervals": (
        "METRICS", "LABEL_METRICS", "Interval", "Difference", "score_interval", "difference_interval",
        "label_intervals", "label_intervals_figure", "label_difference_intervals",
    ),
    "evaluate.thresholds": ("RULES", "Thresholds", "fit_thresholds"),
    "evaluate.cross_fitting": ("Decisions", "fit_decisions", "CrossFit", "cross_fit", "compare_rules"),
    "data.store": ("STORE_VERSION", "SHARD_IMAGES", "CODECS", "store_description", "ImageStore"),
    "predict.bundle": (
        "BUNDLE_VERSION", "BUNDLE_FILES", "HeadSettings", "EngineCheck", "ModelDescription", "parse_description",
        "model_card", "Bundle", "seal_bundle", "zip_bundle", "open_bundle",
    ),
    "evaluate.confusion": ("said_instead", "error_cooccurrence", "top_confusions", "confusion_figure"),
    "evaluate.importance": ("SILENCINGS", "ChannelImportance", "channel_importance"),
    "evaluate.interpretation": (
        "label_table", "label_table_figure", "precision_recall_figure", "score_figure",
        "image_losses", "MultiLabelInterpretation",
    ),
    "system.journal": ("RowJournal",),
    "data.packing": ("verify_store", "PackReport", "pack_images", "append_images"),
    "report.html": (
        "PageFigure", "PageTable", "page_table", "PageSection", "Page", "PAGE_BYTES", "render_template", "picture_uri",
        "write_page",
    ),
    "report.run_folder": ("RunFolder"),
    "predict.submissions": ("read_ids", "write_submission"),
    "report.compare": ("Comparison", "compare_runs"),
    "report.run": ("run_summary", "write_report"),
    "app.uploads": ("Upload", "unpack_upload", "without_folder"),
    "predict.engines": ("ENGINES", "Engine", "is_installed", "check_engine", "onnx_engine", "load_triton_first", "litert_engine", "tensorflow_engine"),
    "predict.hub": ("push_to_hub", "from_hub"),
    "predict.predictor": (
        "Views", "ImageSource", "open_source", "Predictions", "error_table_path", "check_output", "ScoringModel", "Predictor",
        "journal_path", "bundle_predictor", "SAVED_MODEL_DESCRIPTION", "load_onnx", "load_litert", "load_saved_model", "choose_engine", "ensemble",
    ),
    "vision.core": ("TensorRGBY",),
    "vision.augment": (
        "RandomD4", "NormalizeChannels", "rgby_transforms", "GrayLevelsToFloat", "affine_gain", "RandomAffineGain",
    ),
    "vision.load": ("OpenRGBY", "OpenStored", "part_sizes", "RGBYDL"),
    "vision.data": (
        "RGBYBlock", "BalancedSplitter", "protein_datablock", "dataset_targets", "oversampled_dataloaders",
    ),
    "vision.losses": ("MultiLabelFocalLoss", "FocalLossCallback"),
    "callback.precision": ("find_device", "best_precision", "AutoPrecision"),
    "vision.stems": ("find_stem", "adapt_stem"),
    "keras.body": ("KERAS_PREFIX", "KerasBody", "build_keras_body"),
    "vision.models": (
        "cnn_learner", "small_resnet", "find_architecture", "architecture_name", "architecture_library",
        "create_model",
        "stem_splitter", "RGBYLearner", "MacroF1", "MacroAveragePrecision", "start_at_prevalence", "rgby_learner",
    ),
    "callback.distributed": ("join_processes", "lost_process_named", "of_all_processes", "DistributedTraining"),
    "callback.checkpoint": (
        "CHECKPOINT_VERSION", "Checkpoint", "latest_epoch", "latest_checkpoint", "tensors_to_bytes",
        "load_weights",
        "CheckpointCallback", "StopOnDivergence",
    ),
    "vision.network": (
        "new_bundle", "noise_images", "write_onnx", "check_on_noise",
        "ScoringNetwork", "torch_engine", "load_network", "load_bundle", "compare_engines", "images_to_check", "export_bundle",
    ),
    "vision.attribution": (
        "MAP_METHODS", "activation_maps", "randomise", "rank_similarity", "mass_share", "localisation_table",
        "overlay", "maps_figure",
    ),
    "train.evaluation": ("sure_examples", "write_evidence", "renew_evidence"),
    "train.run": (
        "DEMO_SETTINGS", "RunSettings", "EpochLog", "read_data", "history_table", "history_figure",
        "train_run",
    ),
    "export.tensorflow": ("export_litert", "export_saved_model"),
    "predict.load": ("engine_for", "load_predictor"),
    "predict.screening": ("Screening", "screen"),
    "app.page": ("LookedAt", "Viewer", "build_app", "serve"),
}

# Modules that need an extra as soon as they are imported: `from protein_atlas.keras import *`.
_APART = {
    "keras.models": (
        "small_resnet", "find_keras_architecture", "leaf_layers", "trained_layers", "keras_body", "keras_model",
        "freeze_body", "MultiLabelFocalLoss", "MacroF1", "RGBYDataset", "oversampled_datasets", "scoring_model", "keras_predictor",
    ),
}
_MODULES = {**_PUBLIC, **_APART}

__all__ = [name for names in _PUBLIC.values() for name in names]


def __getattr__(name):
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(_import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
