# SPDX-License-Identifier: Apache-2.0
"""Published weights: names, files, and what does not fit."""

import dataclasses
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flax_layers import pretrained
from flax_layers.models.nat import NAT, NATConfig
from flax_layers.pretrained import rules

from . import helpers, published_nat, small_models
from .small_models import ISOTROPIC, MODELS, SCALED

TINY = NATConfig(8, (1,), (2,), mlp_ratio=2, kernel_size=3, num_classes=5)
# Layouts of the models.
LAYOUTS = {
    "nat": ["original", "transformers", "transformers-nat", "transformers-backbone"],
    "dinat": ["original", "transformers"],
    "dinat_s": ["original"],
    "isotropic": ["original", "vit-rpb"],
}


def assert_same_arrays(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        helpers.assert_identical(found[name], expected[name])


@pytest.mark.parametrize(("name", "layout"), [(name, one) for name, all in LAYOUTS.items() for one in all])
def test_round_trip(name, layout, rng):
    """Model to published arrays, into another model, and back: the same bits."""
    model, config, _ = MODELS[name]
    first, second = small_models.random(model, config, rng), small_models.abstract(model, config)
    arrays = pretrained.published(first, layout)
    pretrained.load(second, arrays)
    helpers.assert_identical(nnx.to_pure_dict(nnx.state(second)), nnx.to_pure_dict(nnx.state(first)))
    assert_same_arrays(pretrained.published(second, layout), arrays)


@pytest.mark.parametrize("prefix", ["dinat.", "nat.", ""])
def test_layout_of_transformers(prefix, rng):
    """The same model out of both layouts, which `published` gives back by name."""
    original = published_nat.random_state(published_nat.shapes("nat", dataclasses.asdict(SCALED)), rng)
    other = published_nat.in_transformers(original, prefix)
    assert len(other) > len(original)
    models = [small_models.abstract(NAT, SCALED) for _ in range(2)]
    for model, arrays in zip(models, (original, other), strict=True):
        pretrained.load(model, arrays)
    helpers.assert_identical(*(nnx.to_pure_dict(nnx.state(model)) for model in models))
    layout = {"dinat.": "transformers", "nat.": "transformers-nat", "": "transformers-backbone"}[prefix]
    assert_same_arrays(pretrained.published(models[0], layout), other)
    assert_same_arrays(pretrained.published(models[1]), original)


def test_norms_of_a_backbone(rng):
    """Those of the transformers library count stages from 1."""
    model = small_models.random(NAT, TINY, rng, features_only=True)
    arrays = pretrained.published(model, "transformers-backbone")
    helpers.assert_identical(arrays["hidden_states_norms.stage1.weight"], model.norms[0].scale[...])
    assert {name for name in pretrained.published(model) if "norm0" in name} == {"norm0.weight", "norm0.bias"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_safetensors(dtype, rng, tmp_path):
    """A file has the values and dtypes of the model, and is read into one of another dtype too."""
    model = small_models.random(NAT, TINY, rng, param_dtype=dtype)
    pretrained.save(model, tmp_path / "nat.safetensors", "transformers")
    same = small_models.abstract(NAT, TINY, param_dtype=dtype)
    pretrained.load(same, tmp_path / "nat.safetensors")
    helpers.assert_identical(nnx.to_pure_dict(nnx.state(same)), nnx.to_pure_dict(nnx.state(model)))
    wide = small_models.abstract(NAT, TINY)
    pretrained.load(wide, str(tmp_path / "nat.safetensors"))
    head = wide.classifier.head.kernel[...]
    helpers.assert_identical(head, model.classifier.head.kernel[...].astype(jnp.float32))


def test_safetensors_say_that_they_are_of_pytorch(rng, tmp_path):
    """Without that, the transformers library refuses them."""
    safetensors = pytest.importorskip("safetensors")
    pretrained.save(small_models.random(NAT, TINY, rng), tmp_path / "nat.safetensors")
    with safetensors.safe_open(tmp_path / "nat.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_without_torch(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model = small_models.random(NAT, TINY, rng)
    message = re.escape("nat.pth needs PyTorch: pip install torch, or write the arrays as .safetensors")
    (tmp_path / "nat.pth").touch()
    with pytest.raises(ImportError, match=message):
        pretrained.load(model, tmp_path / "nat.pth")
    with pytest.raises(ImportError, match=message):
        pretrained.save(model, tmp_path / "nat.pth")


def test_without_safetensors(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(ImportError, match=r"a\.safetensors needs safetensors: pip install safetensors"):
        pretrained.load(small_models.random(NAT, TINY, rng), file)


def test_files_of_torch(rng, tmp_path, monkeypatch):
    """Through what PyTorch has for it; only arrays are read, also where they are one level down."""
    kept, asked = {}, []

    def save(arrays, path):
        kept[path] = arrays
        path.touch()

    def load(path, **options):
        asked.append(options)
        return {"model": kept[path], "epoch": 3}

    torch = types.ModuleType("torch")
    torch.from_numpy, torch.load = np.asarray, load
    torch.save = save
    monkeypatch.setitem(sys.modules, "torch", torch)
    model, other = small_models.random(NAT, TINY, rng), small_models.abstract(NAT, TINY)
    pretrained.save(model, tmp_path / "nat.pth")
    pretrained.load(other, tmp_path / "nat.pth")
    helpers.assert_identical(nnx.to_pure_dict(nnx.state(other)), nnx.to_pure_dict(nnx.state(model)))
    assert asked == [{"map_location": "cpu", "weights_only": True}]


def test_what_does_not_fit_is_one_error(rng):
    arrays = pretrained.published(small_models.random(NAT, SCALED, rng))
    del arrays["levels.0.blocks.0.attn.rpb"]
    arrays["levels.1.blocks.1.mlp.fc1.weight"] = np.zeros((3, 16), np.float32)
    arrays["levels.9.blocks.0.norm1.weight"] = np.zeros(4, np.float32)
    config = dataclasses.replace(SCALED, num_classes=7)
    with pytest.raises(ValueError, match="published arrays do not fit the model") as caught:
        pretrained.load(small_models.random(NAT, config, rng), arrays)
    lines = {line.strip() for line in str(caught.value).splitlines()[1:]}
    assert lines == {
        "levels.0.blocks.0.attn.rpb is missing",
        "levels.1.blocks.1.mlp.fc1.weight (3, 16) cannot become levels.1.blocks.1.mlp.fc1.kernel (16, 32)",
        "head.weight (5, 32) cannot become classifier.head.kernel (32, 7)",
        "head.bias (5,) cannot become classifier.head.bias (7,)",
        "levels.9.blocks.0.norm1.weight (4,) is not expected",
    }


def test_nothing_is_loaded_after_an_error(rng):
    model = small_models.random(NAT, TINY, rng)
    before = nnx.to_pure_dict(nnx.state(model))
    arrays = pretrained.published(small_models.random(NAT, TINY, rng))
    del arrays["head.bias"]
    with pytest.raises(ValueError, match=r"head\.bias is missing"):
        pretrained.load(model, arrays)
    helpers.assert_identical(nnx.to_pure_dict(nnx.state(model)), before)


def test_another_number_of_classes(rng):
    arrays = pretrained.published(small_models.random(NAT, TINY, rng))
    model = small_models.random(NAT, dataclasses.replace(TINY, num_classes=7), rng)
    head = model.classifier.head.kernel[...]
    pretrained.load(model, arrays, skip=("head.*",))
    helpers.assert_identical(model.classifier.head.kernel[...], head)
    helpers.assert_identical(model.classifier.norm.scale[...], jnp.asarray(arrays["norm.weight"]))
    with pytest.raises(ValueError, match=r"'haed\.\*' of skip matches no name"):
        pretrained.load(model, arrays, skip=("head.*", "haed.*"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_not_there(name, rng, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}"):
        pretrained.load(small_models.random(NAT, TINY, rng), tmp_path / name)


def test_relative_positions_must_be_those_of_the_model(rng):
    """A buffer of the published vision transformers, in which nothing is learned."""
    model, config, _ = MODELS["isotropic"]
    arrays = pretrained.published(small_models.random(model, config, rng), "vit-rpb")
    name = f"layers.{ISOTROPIC.depth - 1}.attn.relative_position_index"
    side = ISOTROPIC.kernel_size
    assert arrays[name].shape == (side**2, side**2)
    # The first query sees the last key at the largest distance, the entry at the end.
    assert arrays[name][0, -1] == (2 * side - 1) ** 2 - 1
    arrays[name] = arrays[name].T
    with pytest.raises(ValueError, match=f"{name} has other values than this model computes"):
        pretrained.load(small_models.abstract(model, config), arrays)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_parameters_stay_where_they_are(rng):
    model = small_models.random(NAT, TINY, rng)
    sharding = NamedSharding(jax.make_mesh((4,), ("model",)), P("model"))
    model.classifier.norm.scale.set_value(jax.device_put(model.classifier.norm.scale[...], sharding))
    pretrained.load(model, pretrained.published(small_models.random(NAT, TINY, rng)))
    assert model.classifier.norm.scale[...].sharding == sharding


def test_errors(rng, tmp_path):
    model = small_models.random(NAT, TINY, rng)
    with pytest.raises(ValueError, match="layout 'vit-rpb' of NAT must be one of original, transformers, "):
        pretrained.published(model, "vit-rpb")
    with pytest.raises(ValueError, match=r"a\.npz must end with \.safetensors or with one of \.pth"):
        pretrained.load(model, "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz must end with \.safetensors or with one of \.pth"):
        pretrained.save(model, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="MLP has no published names; these models have: NAT, DiNATs"):
        pretrained.load(model.levels[0].blocks[0].mlp, {})


def test_a_parameter_without_a_rule():
    with pytest.raises(KeyError, match=r"no rule has a published name for head\.kernel"):
        rules.to_published(rules.Table([]), {"head.kernel": np.zeros(3)})
