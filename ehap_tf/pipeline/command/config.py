"""Every setting of a run: one field a flag, with its default, unit, choices and help text.

This is the only place that knows them; the command line builds its flags from these fields and
`config.json` is their values. It imports no TensorFlow, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from ehap_tf.criteria import criterion_names, find_criterion
from ehap_tf.pipeline.command.config_checks import (
    AMOUNTS,
    STAGE_NAMES,
    check_setting,
    check_together,
)

ROUNDINGS = ("nearest", "gptq")
ESTIMATORS = ("hutchinson", "gauss_newton", "exact")
TARGETS = (
    "litert",
    "tflm",
    *(f"ethos-u{kind}" for kind in ("55-32", "55-64", "55-128", "55-256", "65-256")),
)
PRECISIONS = ("fp32", "fp16", "bf16", "auto")
RESIZES = ("crop", "stretch")
AUGMENTATIONS = ("auto", "none", "shift", "crop")
NORMALIZATIONS = ("auto", "dataset", "none", "0..1", "-1..1", "imagenet", "caffe")
PRESETS: dict[str, dict[str, Any]] = {
    "ehap": {},
    "best": {
        "criterion": "obs_joint",
        "estimator": "gauss_newton",
        "probes": 16,
        "hessian_batch_size": 512,
        "target_macs": 0.5,
        "cost_aware": "macs",
    },
}
"""Values of settings that --preset gives where no flag does; "ehap" are the defaults."""
DEFAULT_PRUNE_RATIO = 0.77
DEFAULT_REPAIR_IMAGES = 512


def _setting(
    default: Any,
    text: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that carries what the command line and the checks need.

    `low` and `high` are inclusive bounds, `below` an exclusive upper one.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": text,
            "unit": unit,
            "choices": choices,
            "low": low,
            "high": high,
            "below": below,
        },
    )


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """The settings of one run; `None` means what the help text says it means.

    Raises:
        ValueError: a setting is outside its range or two settings contradict each other; the
            message names the flag and the value received.
    """

    model: str = _setting(
        "resnet32",
        "a built-in model by name (resnet8, resnet32, wrn28_10, vgg16, ...), a network of "
        "tf_keras.applications (mobilenet_v2, resnet50, efficientnet_b0, ...), or the path of a "
        "trained Functional or Sequential tf_keras model (.keras, .h5, SavedModel)",
    )
    preset: str = _setting(
        "ehap",
        "the criterion, and how much goes, where no flag says it. ehap: the paper's, 300 probes of "
        "Hutchinson's estimator and a prune ratio of 0.77; best: what was best in our "
        "measurements, " + ", ".join(f"{name}={value}" for name, value in PRESETS["best"].items()),
        choices=tuple(PRESETS),
    )
    width: float = _setting(
        1.0, "multiplies the channels of a built-in network (whole numbers) or of a MobileNet"
    )
    weights: str | None = _setting(
        None,
        "what the training of a network of tf_keras.applications starts from: imagenet, or the "
        "path of a file of its weights; other classes get a new head, which is trained first; "
        "none: from drawn weights",
    )
    dataset: str = _setting(
        "cifar10",
        "cifar10, cifar100, digits, or folder:PATH; training shifts the images",
    )
    data_dir: str | None = _setting(
        None, "folder of tensorflow-datasets; none: TFDS_DATA_DIR, or ~/tensorflow_datasets"
    )
    mirror_images: bool | None = _setting(
        None,
        "training also mirrors images left to right at random; --nomirror_images where left and "
        "right differ, as in writing and signs; not given: all but digits",
    )
    image_size: int | None = _setting(
        None,
        "height and width of the images that a built-in model takes; none: those of the data set. "
        "A saved model gets the size and channels of its input",
        unit="pixels",
        low=8,
    )
    resize: str = _setting(
        "crop",
        "how images of another size are made to fit: scaled until they cover it, and the middle "
        "kept (crop), or each direction scaled by itself (stretch)",
        choices=RESIZES,
    )
    normalization: str = _setting(
        "auto",
        "what becomes of a pixel of 0 to 255. dataset: less the data set's mean, by its deviation; "
        "none: nothing, for models with their preprocessing inside; 0..1 and -1..1: that range; "
        "imagenet: by ImageNet's mean and deviation; caffe: blue, green, red less ImageNet's "
        "means. auto: of a saved model the one in which it does best, else dataset",
        choices=NORMALIZATIONS,
    )
    augmentation: str = _setting(
        "auto",
        "what training does to images at random. shift: by up to 4 pixels; crop: a part of at "
        "least a quarter of the area, scaled up; both mirror them, see mirror_images; auto: crop "
        "from 64 pixels on, else shift",
        choices=AUGMENTATIONS,
    )
    force: bool = _setting(
        False, "go on with a saved model that does no better than chance on the data set"
    )
    baseline: str = _setting(
        "auto",
        "where the trained model comes from. auto: one that lies in saved_models/ for this model "
        "and dataset, else it is trained; train: always train; or the path of a saved model",
    )
    precision: str = _setting(
        "auto",
        "arithmetic of the ranking; auto: fp16 on a GPU with tensor cores, bf16 on a CPU with "
        "AMX, or AMD's with AVX512-BF16, else fp32",
        choices=PRECISIONS,
    )
    criterion: str = _setting(
        "hessian_trace",
        "what a filter is worth. "
        + "; ".join(f"{name}: {find_criterion(name).help}" for name in criterion_names()),
        choices=criterion_names(),
    )
    estimator: str = _setting(
        "hutchinson",
        "how hessian_trace is estimated; other criteria of curvature take gauss_newton for "
        "hutchinson",
        choices=ESTIMATORS,
    )
    probes: int = _setting(300, "random probes of the estimator", unit="probes", low=1)
    tolerance: float | None = _setting(
        None,
        "stop probing when the expected share of filters on the wrong side of the threshold is "
        "below this; none: take all probes. Of the criteria that sample, for "
        + ", ".join(name for name in criterion_names() if find_criterion(name).judged),
        unit="fraction of filters",
        low=0,
        below=1,
    )
    hessian_batch_size: int = _setting(
        128,
        "training images, drawn at random, that the ranking looks at; fewer where there are",
        unit="images",
        low=1,
    )
    prune_ratio: float | None = _setting(
        None,
        f"share of all filters to remove; none: {DEFAULT_PRUNE_RATIO}, unless --target_params, "
        "--target_macs or --target_latency_ms is given",
        unit="fraction of filters",
        low=0,
        below=1,
    )
    target_params: float | None = _setting(
        None, "share of the parameters to keep, instead of --prune_ratio", unit="fraction", high=1
    )
    target_macs: float | None = _setting(
        None,
        "share of the multiply-accumulates to keep, instead of --prune_ratio",
        unit="fraction",
        high=1,
    )
    target_latency_ms: float | None = _setting(
        None,
        "of the integer file, instead of --prune_ratio, as predicted from times of its operators",
        unit="ms",
    )
    latency_table: str | None = _setting(
        None,
        "with --target_latency_ms, the times of the operators of this model on a device, as "
        "`python -m ehap_tf.benchmark operators` writes them; none: they are measured here",
    )
    prune_ratio_limit: float = _setting(
        0.95,
        "a layer loses at most this share of its filters, and never the last one",
        unit="fraction of a layer's filters",
        low=0,
        below=1,
    )
    residual: str = _setting(
        "union",
        "residual sums: each branch keeps its own filters (union), or all keep the same (tied)",
        choices=("union", "tied"),
    )
    implant_ratio: float = _setting(
        0.0,
        "of the filters to be removed, the share (the more sensitive ones) that becomes 1x1",
        unit="fraction",
        low=0,
        high=1,
    )
    round_to: int = _setting(
        1, "keep a multiple of this many filters in each layer", unit="filters", low=1
    )
    cost_aware: str | None = _setting(
        None,
        "scores count per cost that a filter causes, in multiply-accumulates or parameters: for "
        "--target_macs and --target_params; none: they count as they are",
        choices=("macs", "params"),
    )
    remove_blocks: tuple[str, ...] = _setting(
        (),
        "residual blocks that go whole before filters are ranked: how many, which are those that "
        "are missed least, or which, by the names of their sums, comma-separated",
    )
    repair_images: int | None = _setting(
        None,
        "training images, without their labels, on which the kernels that lost inputs are solved "
        f"again by least squares after pruning; 0: none; none: {DEFAULT_REPAIR_IMAGES}, but 0 "
        "where the run directory holds a network that was pruned without",
        unit="images",
        low=0,
    )
    recalibrate_batches: int = _setting(
        32,
        "batches that re-estimate BatchNorm after pruning where nothing is repaired "
        "(--repair_images=0); 0: none",
        unit="batches",
        low=0,
    )
    prune_steps: int = _setting(
        1,
        "remove the filters in this many equal parts; before each further part the network is "
        "trained a little (--prune_step_epochs) and ranked again",
        unit="steps",
        low=1,
    )
    prune_step_epochs: int = _setting(
        1,
        "length of the training between two parts of --prune_steps, with fine-tuning's learning "
        "rate",
        unit="epochs",
        low=0,
    )
    train_epochs: int = _setting(30, "length of training the baseline", unit="epochs", low=0)
    finetune_epochs: int = _setting(15, "length of fine-tuning", unit="epochs", low=0)
    qat_epochs: int = _setting(3, "length of quantization-aware training", unit="epochs", low=0)
    batch_size: int = _setting(
        128,
        "training batch, all devices together; smaller where an epoch would have under 20 steps",
        unit="images",
        low=1,
    )
    learning_rate: float = _setting(0.1, "peak learning rate of training", unit="per step", low=0)
    finetune_learning_rate: float | None = _setting(
        None, "of fine-tuning; none: half of --learning_rate", unit="per step", low=0
    )
    qat_learning_rate: float | None = _setting(
        None, "of quantization-aware training; none: --learning_rate / 50", unit="per step", low=0
    )
    weight_decay: float = _setting(
        5e-4, "L2 penalty on kernels while training", unit="per step", low=0
    )
    finetune_weight_decay: float | None = _setting(
        None, "of fine-tuning; none: --weight_decay", unit="per step", low=0
    )
    qat_weight_decay: float | None = _setting(
        None, "of quantization-aware training; none: --weight_decay / 5", unit="per step", low=0
    )
    warmup_epochs: float = _setting(
        1.0, "training starts with a linear warm-up of this length", unit="epochs", low=0
    )
    weight_bits: int = _setting(
        8, "bits of a convolution weight in the integer file, 8 or 4", unit="bits"
    )
    activation_bits: int = _setting(
        8,
        "bits of what the layers compute in the integer file, 8, or 16 for outputs that 8 are too "
        "coarse for, as of sound; with kernels of 8 bits, in larger tensors",
        unit="bits",
    )
    target_bytes: int | None = _setting(
        None,
        "of the integer file: as many kernels have 4 bits as it takes, those whose rounding costs "
        "the least; none: all have --weight_bits",
        unit="bytes",
        low=1,
    )
    rounding: str = _setting(
        "nearest",
        "of the kernels: each weight for itself (nearest), or for the outputs of its layer, with "
        "corrected biases (gptq), which goes with --qat_epochs=0: training rounds to nearest",
        choices=ROUNDINGS,
    )
    allow_float: bool = _setting(
        False,
        "keep layers that are not supported in integers (ELU, softplus, your own) in float, "
        "instead of refusing the model",
    )
    target: str = _setting(
        "litert",
        "what runs the file; others than litert (tflm is TensorFlow Lite Micro, with or without an "
        "Ethos-U) need ehap_tf[micro]: that they have the operators is checked before anything is "
        "trained, and the file is tried there",
        choices=TARGETS,
    )
    train_precision: str = _setting(
        "auto",
        "arithmetic of training and fine-tuning; auto: bf16 on a CPU with AMX, or AMD's "
        "with AVX512-BF16, else fp32 (fp16 on a GPU with tensor cores). Quantization-aware "
        "training is always fp32",
        choices=PRECISIONS,
    )
    strategy: str = _setting(
        "none",
        "devices that train and rank: the default one (none), all GPUs of this machine (mirrored), "
        "or those of the machines in TF_CONFIG, the command started on each (multi_worker). A "
        "batch is divided among them, and the learning rate stays as it is",
        choices=("none", "mirrored", "multi_worker"),
    )
    seed: int = _setting(0, "of weights, order, augmentation, probes", low=0)
    stages: tuple[str, ...] = _setting(
        STAGE_NAMES,
        "the part of the job to do, comma-separated",
        choices=STAGE_NAMES,
    )
    output_dir: str | None = _setting(
        None, "run directory; none: saved_models/<model>_<dataset>_<precision>"
    )
    resume: bool = _setting(
        True,
        "go on where the run directory stands; false moves an existing one aside to "
        "<output_dir>.old and starts afresh",
    )
    verbosity: int = _setting(
        1, "0: errors and the final table, 1: progress, 2: details as well", low=0, high=2
    )

    def __post_init__(self) -> None:
        """Checks each setting, and those that exclude each other."""
        for field in dataclasses.fields(self):
            check_setting(field, getattr(self, field.name))
        check_together(self)

    @property
    def network_settings(self) -> dict[str, Any]:
        """What makes the network besides its name, where it is not the default."""
        values: dict[str, Any] = {} if self.width == 1 else {"width": self.width}
        return values if self.weights is None else values | {"weights": self.weights}

    @property
    def image_settings(self) -> dict[str, Any]:
        """What is done to images, where it is not the default."""
        names = ("mirror_images", "image_size", "resize", "normalization", "augmentation")
        default = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != default[name]}

    @property
    def names_saved_model(self) -> bool:
        """Whether --model is the path of a saved model."""
        return is_saved_model(self.model)

    @property
    def run_path(self) -> pathlib.Path:
        """The run directory that these settings mean."""
        if self.output_dir:
            return pathlib.Path(self.output_dir)
        return pathlib.Path("saved_models") / f"{self.experiment}_{self.precision}"

    @property
    def experiment(self) -> str:
        """`<model>_<dataset>`, with paths reduced to what a file name can hold."""
        model = pathlib.Path(self.model).stem if _is_path(self.model) else self.model
        dataset = self.dataset
        if dataset.startswith("folder:"):
            dataset = pathlib.Path(dataset.removeprefix("folder:")).name or "folder"
        return re.sub(r"[^\w.-]", "-", f"{model}_{dataset}")

    @property
    def repaired_images(self) -> int:
        """On how many images the slim network is repaired."""
        return DEFAULT_REPAIR_IMAGES if self.repair_images is None else self.repair_images

    @property
    def amount(self) -> dict[str, Any]:
        """How much to prune, as the one keyword argument of `plan_pruning`."""
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None:
                return {name: value}
        return {"prune_ratio": DEFAULT_PRUNE_RATIO}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PipelineConfig:
        """The inverse of `to_dict`; settings that it does not know are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        return cls(**settings)


def with_preset(settings: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The settings with the values of their preset for those that no flag gives.

    Args:
        settings: a value for each field.
        given: the names of those that flags give; an amount that is given replaces the preset's.
    """
    preset = dict(PRESETS.get(settings["preset"], {}))
    if any(name in given and settings[name] is not None for name in AMOUNTS):
        for name in AMOUNTS:
            preset.pop(name, None)
    return {**settings, **{name: preset[name] for name in preset if name not in given}}


def is_saved_model(model: str) -> bool:
    """Whether `--model` or `--baseline` means a saved model rather than a name."""
    return _is_path(model)


def _is_path(name: str) -> bool:
    path = pathlib.Path(name)
    is_file = "/" in name or "\\" in name or path.suffix in (".keras", ".h5", ".hdf5")
    return is_file or (path / "saved_model.pb").exists()
