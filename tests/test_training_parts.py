# SPDX-License-Identifier: Apache-2.0
"""What the training example is made of: recipes, schedules, batches, augmentation, mixing, attention maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_layers.nnx import NeighborhoodAttention

from .training_modules import experiment, write_images  # isort: skip

from PIL import Image
from training import attention_maps, augment, data, history, mixing, rand_augment, report, schedule
from training.recipe import EXPERIMENTS, MODELS, Recipe

RECIPE = Recipe()


def replaced(**fields):
    return dataclasses.replace(RECIPE, **fields)


# Recipes


def test_published_recipes():
    mini, large = (EXPERIMENTS[name].recipe for name in ("nat_mini", "dinat_large_384"))
    assert (mini.epochs, mini.cooldown_epochs, mini.batch_size, mini.learning_rate) == (300, 10, 1024, 1e-3)
    assert (mini.mixup, mini.cutmix, mini.label_smoothing, mini.weight_decay) == (0.8, 1.0, 0.1, 0.05)
    assert (large.epochs, large.schedule, large.learning_rate, large.mixup) == (30, "linear", 5e-5, 0)
    assert (large.weight_decay, large.image_size, large.crop) == (1e-10, 384, 1.0)
    assert EXPERIMENTS["dinat_isotropic_base"].recipe.ema == 0.9998
    assert EXPERIMENTS["dinat_base"].model.drop_path == 0.5
    assert {"nat_tiny", "dinat_s_large_384", "vit_rpb_base", "digits"} < EXPERIMENTS.keys()


def test_settings():
    settings = ["depths=(1, 2)", "num_heads=(1, 1)", "ema=0.5", "schedule=linear"]
    changed = EXPERIMENTS["nat_mini"].replaced(settings)
    assert (changed.model.depths, changed.recipe.ema, changed.recipe.schedule) == ((1, 2), 0.5, "linear")
    with pytest.raises(ValueError, match=r"no learningrate to set; there are embed_dim.*learning_rate"):
        changed.replaced(["learningrate=1"])
    with pytest.raises(ValueError, match="'epochs' must be NAME=VALUE"):
        changed.replaced(["epochs"])
    with pytest.raises(ValueError, match="schedule 'step' must be one of cosine, linear"):
        changed.replaced(["schedule=step"])


def test_learning_rate():
    """Warm-up, cosine, floor; the cosine is not moved by the warm-up."""
    rate = schedule.learning_rate(RECIPE, epoch_steps=10)
    found = [float(rate(step)) for step in (0, 100, 200, 1500, 3000, 3099)]
    cosine = 5e-6 + (1e-3 - 5e-6) * (1 + np.cos(np.pi * 20 / 300)) / 2
    np.testing.assert_allclose(found, [1e-6, 5.005e-4, cosine, 5.025e-4, 5e-6, 5e-6], rtol=1e-5)
    linear = schedule.learning_rate(EXPERIMENTS["dinat_large"].recipe, epoch_steps=10)
    np.testing.assert_allclose([float(linear(step)) for step in (0, 150, 300)], [5e-5, 2.5e-5, 0], atol=1e-12)


def test_what_is_decayed():
    """Kernels and positional biases; not the bias of a query, which has two axes."""
    config = dataclasses.replace(experiment().model, layer_scale=1e-5)
    parameters = nnx.state(nnx.eval_shape(lambda: MODELS[type(config)](config, rngs=nnx.Rngs(0))), nnx.Param)
    flat, _ = jax.tree.flatten_with_path(schedule.is_decayed(parameters))
    decayed = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in flat}
    last = {name.removesuffix(".value").rpartition(".")[2]: value for name, value in decayed.items()}
    assert last == {"kernel": True, "rpb": True, "bias": False, "scale": False, "gamma": False}


# Batches


class Numbers:
    """Images that are their own numbers."""

    labels = np.arange(23)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((2, 2), index, np.float32), int(index)


def test_batches_follow_from_the_step():
    recipe = replaced(batch_size=5, augmentation="warp", image_size=2)
    batches = data.Batches(Numbers(), recipe, seed=3)
    assert batches.epoch_steps == 4
    since = batches.since(6)
    for step in range(6, 10):
        for found, expected in zip(next(since), batches[step], strict=True):
            np.testing.assert_array_equal(found, expected)
    epochs = [np.concatenate([batches[4 * epoch + i][1] for i in range(4)]) for epoch in range(3)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = data.Batches(Numbers(), recipe, seed=4)
    assert not np.array_equal(other[0][1], batches[0][1])
    with pytest.raises(ValueError, match="batch_size 24 is more than the 23 images"):
        data.Batches(Numbers(), replaced(batch_size=24), seed=3)


def test_folder(tmp_path):
    write_images(tmp_path / "one", 12)
    split = data.folder(tmp_path / "one")
    assert (len(split.train), len(split.held_out), split.classes) == (22, 2, ("bright", "dark"))
    recipe = replaced(batch_size=4, image_size=24)
    images, labels = data.Batches(split.train, recipe, seed=0)[0]
    assert (images.shape, images.dtype, labels.shape) == ((4, 24, 24, 3), np.float32, (4,))
    (evaluated, labels), *rest = data.held_out_batches(split.held_out, recipe)
    assert not rest
    assert evaluated.shape == (2, 24, 24, 3)
    assert labels.tolist() == [0, 1]

    for part, count in (("train", 3), ("val", 2)):
        write_images(tmp_path / "two" / part, count)
    split = data.folder(tmp_path / "two")
    assert (len(split.train), len(split.held_out)) == (6, 4)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="0 folders with images; it must have one for every class"):
        data.folder(tmp_path / "missing")
    write_images(tmp_path / "few", 3)
    with pytest.raises(ValueError, match="no class has 10 images"):
        data.folder(tmp_path / "few")
    write_images(tmp_path / "other" / "train", 1)
    write_images(tmp_path / "other" / "val", 1, classes=("bright", "green"))
    with pytest.raises(ValueError, match="different classes: dark, green"):
        data.folder(tmp_path / "other")


# Augmentation


def test_warp(rng):
    """The identity keeps an image, a move moves it, a turn turns it, a bend too; outside there are zeros."""
    images = rng.random((1, 6, 6), np.float32)

    def warped(matrix, move=(0, 0), size=6, bend=0.0):
        matrix, move = np.array([matrix], float), np.array([move], float)
        return augment.warped(images, matrix, move, size, bend)[0, ..., 0]

    np.testing.assert_allclose(warped(np.eye(2)), images[0], atol=1e-6)
    np.testing.assert_allclose(warped(np.eye(2), (2, 0))[:4], images[0, 2:], atol=1e-6)
    assert not warped(np.eye(2), (2, 0))[4:].any()
    np.testing.assert_allclose(warped([[0, 1], [-1, 0]]), np.rot90(images[0]), atol=1e-6)
    bend = np.zeros((1, 2, 6, 6))
    bend[:, 1, :, :3] = 3
    np.testing.assert_allclose(warped(np.eye(2), bend=bend), np.tile(images[0, :, 3:], 2), atol=1e-6)
    twice = warped(np.eye(2), size=12)
    between = np.array([0.75, 0.25])  # pixel (3, 5) of 12 x 12 lies at (1.25, 2.25) of 6 x 6
    np.testing.assert_allclose(twice[3, 5], between @ images[0, 1:3, 2:4] @ between, rtol=1e-5)


def test_bends_are_smooth(rng):
    """Splines add up to one everywhere, and digits are bent without tearing."""
    splines = augment.splines(28)
    np.testing.assert_allclose(splines.sum(1), 1, rtol=1e-6)
    bend = augment.BEND * rng.standard_normal((100, splines.shape[1])) @ splines.T
    assert np.abs(np.diff(bend)).max() < 1
    assert 0.5 < bend.std() < 1.5


def test_photo_is_a_function_of_its_generator():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8))
    photo = augment.Photo(replaced(image_size=32))
    first, second, third = (photo((image, 1), np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    assert (first.shape, first.dtype) == ((32, 32, 3), np.float32)


def test_random_boxes(rng):
    for _ in range(50):
        left, top, right, bottom = augment.crop_box((40, 30), rng)
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        assert 0.07 < (right - left) * (bottom - top) / 1200 <= 1
    left, top, right, bottom = augment.crop_box((1000, 1), rng)  # no part of it has legal proportions
    assert (right - left) / (bottom - top) == pytest.approx(4 / 3)


@pytest.mark.parametrize("number", range(len(rand_augment.OPERATIONS)))
def test_rand_augment(number, rng):
    """Every operation changes an image, and not its size."""
    pixels = np.linspace(40, 200, 24 * 20 * 3).reshape(24, 20, 3) + rng.integers(0, 20, (24, 20, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    changed = rand_augment.OPERATIONS[number](image, 0.9, rng)
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert not np.array_equal(np.asarray(changed), np.asarray(image))


def test_center():
    """The middle of the shorter side, as large as the crop says, with the mean color at 0."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[4:60, 36:92] = np.round(rand_augment.MEAN_COLOR)  # 0.875 of 64
    found, _ = augment.Center(replaced(image_size=56))((Image.fromarray(pixels), 0))
    assert np.abs(found).max() < 0.01


# Mixing


def test_mixup_and_cutmix(rng):
    images = rng.standard_normal((4, 8, 6, 3), np.float32)
    targets = np.asarray(mixing.targets_of(jnp.array([0, 1, 2, 0]), 3, RECIPE))
    np.testing.assert_allclose(targets[1], [0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3], rtol=1e-6)
    mixup, cutmix = (jax.jit(functools.partial(f, recipe=RECIPE)) for f in (mixing.mixup, mixing.cutmix))
    for seed in range(4):
        mixed, soft = map(np.asarray, mixup(jax.random.key(seed), images, targets))
        share = (mixed - images[::-1])[0, 0, 0, 0] / (images - images[::-1])[0, 0, 0, 0]
        np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], atol=1e-5)
        np.testing.assert_allclose(soft, share * targets + (1 - share) * targets[::-1], atol=1e-5)

        cut, soft = cutmix(jax.random.key(seed), images, targets)
        own = np.asarray(cut == images)
        assert np.all(own | np.asarray(cut == images[::-1]))
        rows, columns = (~own[0, ..., 0]).any(1), (~own[0, ..., 0]).any(0)
        np.testing.assert_array_equal(~own[0, ..., 0], rows[:, None] & columns)
        np.testing.assert_allclose(soft, own.mean() * targets + (1 - own.mean()) * targets[::-1], atol=1e-6)


def test_no_mixing():
    images, targets = jnp.ones((2, 4, 4, 1)), jnp.eye(2)
    same = mixing.mixed(jax.random.key(0), images, targets, replaced(mixup=0.0, cutmix=0.0))
    assert all(map(np.array_equal, same, (images, targets)))


# What is seen of a run


def test_history_drops_what_is_done_again(tmp_path):
    file = tmp_path / "history.jsonl"
    value = float(np.float32(0.1))
    history.History(file, 0).add({"step": step, "loss": value} for step in range(1, 6))
    with file.open("a") as cut_off:
        cut_off.write('{"step": 6, "lo')
    resumed = history.History(file, 3)
    resumed.add([{"step": 4, "epoch": 1}])
    assert [record["step"] for record in history.read(file)] == [1, 2, 3, 4]
    assert [record["loss"] for record in resumed.steps] == [value] * 3
    assert resumed.evaluations == [{"step": 4, "epoch": 1}]


def test_confusion():
    matrix = report.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_weights_of_a_layer(rng):
    """Values weighted by them are what the layer makes of the token."""
    bias = {"rel_pos_bias": True, "rpb_init": jax.nn.initializers.normal(1)}
    layer = NeighborhoodAttention(2, 8, (3, 5), dilation=(2, 1), **bias, rngs=nnx.Rngs(0))
    x, position = jnp.asarray(rng.standard_normal((7, 9, 8)), jnp.float32), (5, 2)
    weights = attention_maps.weights_of(layer, x, position)
    attention = layer.neighborhood.attention_map((7, 9), position, weights)
    assert np.isnan(attention).sum() == 2 * (7 * 9 - 15)
    np.testing.assert_allclose(np.nansum(attention, (1, 2)), 1, rtol=1e-5)
    mixed = jnp.einsum("hxy,xyhd->hd", np.nan_to_num(attention), layer.value(x))
    np.testing.assert_allclose(layer.out(mixed), layer(x)[position], rtol=1e-4, atol=1e-5)
