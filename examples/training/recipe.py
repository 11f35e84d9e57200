# SPDX-License-Identifier: Apache-2.0
"""What is trained, and how: frozen dataclasses, and a table of them.

The recipes of ImageNet are those that the authors of NAT and DiNAT published with their models. Their batches
are for 8 GPUs, and here as there the learning rate does not follow from the batch.
"""

import ast
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx

from flax_layers.models import dinat_s, isotropic, nat

Config = nat.NATConfig | dinat_s.DiNATsConfig | isotropic.IsotropicConfig
MODELS: dict[type, Callable[..., nnx.Module]] = {
    nat.NATConfig: nat.NAT,
    dinat_s.DiNATsConfig: dinat_s.DiNATs,
    isotropic.IsotropicConfig: isotropic.Isotropic,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimization, regularization and augmentation.

    Attributes:
      epochs: from the first step to the end of the schedule, warm-up included.
      batch_size: images of a step, on all devices together.
      learning_rate: of AdamW, at its highest.
      schedule: "cosine" or "linear", step by step, down to `final_learning_rate`.
      warmup_epochs: the rate grows linearly from `warmup_learning_rate`; the schedule runs meanwhile.
      cooldown_epochs: more epochs at the final rate.
      weight_decay: of kernels and positional biases; not of biases, norms and factors.
      betas, epsilon: of AdamW.
      clip_norm: the largest norm of a gradient.
      ema: decay of the moving average of the parameters, which is what is evaluated; 0 for none.
      label_smoothing: probability that is spread over all classes.
      mixup, cutmix: parameter of the beta distribution; 0 for none of it. With both, each has half of the
        batches.
      augmentation: "warp" for digits, "imagenet", or "flip" (a random crop and flip alone).
      crop: the share of the side that is seen in evaluation, in the middle.
      image_size: pixels along the sides of what the model sees.
      dtype: of the computation; parameters, their average and the optimizer's state are float32. The authors
        had float16 with a factor on the loss, which bfloat16 does not need.
    """

    epochs: int = 300
    batch_size: int = 1024
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_epochs: float = 20
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 5e-6
    cooldown_epochs: int = 10
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float = 5.0
    ema: float = 0.0
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    augmentation: str = "imagenet"
    crop: float = 0.875
    image_size: int = 224
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        legal = {
            "schedule": ("cosine", "linear"),
            "augmentation": ("warp", "imagenet", "flip"),
            "dtype": ("float32", "bfloat16"),
        }
        for name, values in legal.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r} must be one of {', '.join(values)}")
        for name in ("epochs", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A model and its recipe. `num_classes` and `in_channels` of the model follow from the data."""

    model: Config
    recipe: Recipe

    def replaced(self, settings: Iterable[str]) -> "Experiment":
        """With some fields of the recipe or of the model changed.

        Args:
          settings: `NAME=VALUE`, values as Python writes them; what is no such value is a string.

        Raises:
          ValueError: a name that neither has, with all names that there are.
        """
        fields: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"{setting!r} must be NAME=VALUE, such as batch_size=64")
            fields[name] = _value(text)
        parts: list[Any] = []
        for part in (self.model, self.recipe):
            own = {field.name for field in dataclasses.fields(part)} & fields.keys()
            parts.append(dataclasses.replace(part, **{name: fields.pop(name) for name in own}))
        if fields:
            names = [field.name for part in parts for field in dataclasses.fields(part)]
            raise ValueError(f"there is no {', '.join(fields)} to set; there are {', '.join(names)}")
        return Experiment(*parts)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


# Two levels, of 9 x 9 and 5 x 5 tokens. A token sees nine: around it, and in one block spread over the level.
DIGITS = Experiment(
    nat.NATConfig(
        embed_dim=48,
        depths=(2, 2),
        num_heads=(3, 6),
        mlp_ratio=2,
        kernel_size=3,
        dilations=((1, 3), (1, 1)),
        drop_path=0.05,
    ),
    Recipe(
        epochs=30,
        batch_size=25,
        learning_rate=2e-3,
        warmup_epochs=1,
        warmup_learning_rate=0.0,
        final_learning_rate=2e-5,
        cooldown_epochs=0,
        betas=(0.9, 0.98),
        clip_norm=1.0,
        ema=0.99,
        label_smoothing=0.05,
        mixup=0.0,
        cutmix=0.0,
        augmentation="warp",
        crop=1.0,
        image_size=36,
        dtype="float32",
    ),
)

_SCRATCH = Recipe()
# The published configs say "linear" and not where it ends; the published script has no such schedule.
_FINE_TUNING = dataclasses.replace(
    _SCRATCH,
    epochs=30,
    batch_size=512,
    learning_rate=5e-5,
    schedule="linear",
    warmup_epochs=0,
    final_learning_rate=0.0,
    cooldown_epochs=0,
    weight_decay=1e-4,
    mixup=0.0,
    cutmix=0.0,
    dtype="float32",
)
_FINE_TUNING_384 = dataclasses.replace(_FINE_TUNING, weight_decay=1e-10, crop=1.0, image_size=384)
_ISOTROPIC_BASE = dataclasses.replace(_SCRATCH, warmup_epochs=50, ema=0.9998)
# Those that differ from training from scratch.
_PUBLISHED = {
    "dinat_large": _FINE_TUNING,
    "dinat_large_384": _FINE_TUNING_384,
    "dinat_large_384_11x11": _FINE_TUNING_384,
    "dinat_s_large": _FINE_TUNING,
    "dinat_s_large_384": dataclasses.replace(_FINE_TUNING_384, weight_decay=1e-5),
    "nat_isotropic_base": _ISOTROPIC_BASE,
    "dinat_isotropic_base": _ISOTROPIC_BASE,
    "vit_rpb_base": _ISOTROPIC_BASE,
}
_VARIANTS: dict[str, Config] = {**nat.VARIANTS, **dinat_s.VARIANTS, **isotropic.VARIANTS}

EXPERIMENTS: dict[str, Experiment] = {
    "digits": DIGITS,
    **{name: Experiment(model, _PUBLISHED.get(name, _SCRATCH)) for name, model in _VARIANTS.items()},
}
