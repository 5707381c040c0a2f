"""Which dimensions each model's parameters depend on: all the earlier ones that the
paper's network reaches, and no other. One measurement, `sees`, serves all models."""

import numpy as np
import pytest
from zoo import cases, numpy, tiny

pytestmark = pytest.mark.portable


def sees(model, images, **arguments):
    """[i, j]: whether the parameters of i change when j changes in some image. i and j
    are dimensions, or pixels if the likelihood couples the channels of a pixel."""
    shape, levels = model.image_shape, model.levels
    D = int(np.prod(shape))
    n = D if model.channels_in_turn else D // shape[-1]
    seen = np.zeros((n, D), bool)
    for image in images:
        x = np.repeat(image.reshape(1, D), D + 1, 0)
        x[range(D), range(D)] = (x[range(D), range(D)] + 1) % levels
        x = x.reshape(-1, *shape).astype("uint8")
        # Without gradients PyTorch's kernels round each row in its own way.
        out = numpy(model.logits(x, gradients=True, **arguments))
        out = out.reshape(D + 1, n, -1)
        change = np.abs(out[:-1] - out[-1:]).max(-1)  # (changed j, parameters of i)
        seen |= (change > 1e-6 * np.abs(out).max()).T
    return seen if n == D else seen.reshape(n, n, -1).any(-1)


def earlier(n):
    return np.tri(n, k=-1, dtype=bool)


GRAY, COLOR = (5, 7, 1), (4, 3, 3)
DEEP = {"num_blocks": 3, "filters": 48}
ONE, TWO = ({"units": 48, "num_layers": n, "first_kernel_size": 3} for n in (1, 2))
PP = {"num_blocks": 2, "num_resolutions": 2}
CASES = [(name, GRAY, {}) for name in ("fvbn", "nade", "made")]
CASES += [("gated", GRAY, DEEP), ("gated", COLOR, {"filters": 48})]
CASES += [("diagonal", (4, 9, 1), ONE), ("diagonal", (3, 4, 3), ONE)]
CASES += [("row-lstm", COLOR, {"units": 48})]  # narrower than its triangle
FURTHER = [(name, COLOR, {}) for name in ("fvbn", "nade", "made")]
FURTHER += [("diagonal", (4, 9, 1), TWO), ("diagonal", (3, 4, 3), TWO)]
FURTHER += [("diagonal", s, k) for s in ((6, 3, 1), (1, 8, 1)) for k in (ONE, TWO)]
FURTHER += [("diagonal", shape, {"units": 48}) for shape in (GRAY, COLOR)]
FURTHER += [("gated", COLOR, DEEP), ("pp", GRAY, PP), ("pp", COLOR, PP)]


@pytest.mark.parametrize("name, shape, kwargs", cases(CASES, FURTHER))
def test_parameters_see_every_earlier_dimension_alone(name, shape, kwargs, rng):
    model = tiny(name, shape, 3, scale=2.0, **kwargs)
    seen = sees(model, rng.integers(0, 3, (12, *shape)))
    np.testing.assert_array_equal(seen, earlier(len(seen)))


@pytest.mark.parametrize("channels", cases([3], [1]))
def test_pixel_cnn_has_the_known_blind_spot_and_no_other(channels, rng):
    """Its first layer reaches 3 pixels to the right of the row above, and each block
    one more pixel for one more row: beyond this triangle it sees nothing."""
    H, W = 4, 7
    model = tiny("pixel-cnn", (H, W, channels), num_blocks=6, filters=48)
    seen = sees(model, rng.integers(0, 2, (24, H, W, channels)))
    row, column = np.divmod(np.arange(H * W).repeat(channels), W)
    up, right = row[:, None] - row[None], column[None] - column[:, None]
    blind = (up >= 1) & (right > up + 2)
    assert blind.any()
    np.testing.assert_array_equal(seen, earlier(len(seen)) & ~blind)


FURTHER = [((8, 8, 1), 2, 3), ((7, 5, 1), 2, 1), ((5, 7, 1), 4, 3)]
FURTHER += [((1, 6, 1), 2, 2), ((6, 1, 3), 4, 3)]


@pytest.mark.parametrize("shape, levels, R", cases([((7, 5, 3), 4, 2)], FURTHER))
def test_pixel_cnn_pp_sees_earlier_pixels_alone(shape, levels, R, rng):
    """Of odd sizes and several resolutions: halved maps carry nothing of an odd row to
    the row itself, and not all of the one above."""
    model = tiny("pp", shape, levels, num_resolutions=R)
    for conv in model.convolutions():  # distant pixels hardly matter to small ones
        conv.g.assign(1.0 + np.abs(numpy(conv.g)))
    seen = sees(model, rng.integers(0, levels, (4, *shape)))
    row, column = np.divmod(np.arange(len(seen)), shape[1])
    far = np.abs(column[:, None] - column) > 4 * model.num_blocks + 1
    blind = far & (row[:, None] % 2 == 1) & (row >= row[:, None] - 1)
    expected = earlier(len(seen))
    assert not seen[~expected].any() and seen[expected & ~blind].all()
    assert blind[expected].mean() < 0.02


PLAIN = {"hidden_units": (9, 9), "direct": False, "activation": "tanh"}
CASES = [("made-ensemble", {"ordering": "random"}), ("made", PLAIN)]


@pytest.mark.parametrize("name, kwargs", cases(CASES, [("made-ensemble", {})]))
def test_each_mask_of_made_sees_what_is_before_in_order(name, kwargs, rng):
    model = tiny(name, (3, 1, 3), **kwargs)
    images = rng.integers(0, 2, (8, 3, 1, 3))
    for m, order in enumerate(model.degrees[0]):
        seen = sees(model, images, mask=m)
        np.testing.assert_array_equal(seen, order[:, None] > order)
