"""Numbers about models: bits per dimension, the importance-weighted bound."""

import keras
import numpy as np
from keras import ops

from kgen import backend, random

_MAX_ROWS = 8192  # decoder rows at once


def bits_per_dim(nats, image_shape):
    """Nats per image, of either sign -> bits per dimension: nats / (H W C ln 2)."""
    return nats / (float(np.prod(image_shape)) * float(np.log(2.0)))


def log_mean_weight(log_weights, num_samples, seed, x, *labels):
    """log 1/k sum_i w_i, the k-sample bound of Burda et al. 2016 (eq. 8): (B,) nats.

    The noise of sample i is a function of the image, `seed` and i, so an image's bound
    is the same in any batch.

    Args:
        log_weights: function (x, keys, streams[, labels]) -> (B, len(streams)) nats.
        num_samples: k.
        seed: int, for another draw.
        x: images (B, H, W, C).
        *labels: (B,), for conditional models.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive; got {num_samples}.")
    keys = random.image_keys(x, seed)  # (B, 2)
    chunk = max(1, min(num_samples, _MAX_ROWS // int(x.shape[0])))
    total = None
    for start in range(0, num_samples, chunk):
        streams = np.arange(start, min(start + chunk, num_samples), dtype="int32")
        streams = ops.convert_to_tensor(streams)
        part = ops.logsumexp(log_weights(x, keys, streams, *labels), axis=1)  # (B,)
        total = part if total is None else ops.logaddexp(total, part)
    return total - float(np.log(num_samples))


def importance_weighted_bound(
    model, x, num_samples=5000, labels=None, batch_size=100, seed=0, verbose="auto"
):
    """`model.log_prob(x, num_samples)` for a whole data set, compiled, with progress.

    The custom for VAEs is 5000 samples on the test set.

    Args:
        model: a model with `log_weights`, such as VAE.
        x: integer images (N, H, W, C).
        labels: (N,), for conditional models.
        verbose: 0 for no progress bar.

    Returns: NumPy float32 (N,), nats.
    """
    images, *labels = model.checked(x, labels)
    log_weights = backend.compiled(model, model.log_weights)
    bar = keras.utils.Progbar(len(x), unit_name="image") if verbose else None
    out = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        bound = log_mean_weight(
            log_weights, num_samples, seed, images[part], *[y[part] for y in labels]
        )
        out.append(ops.convert_to_numpy(bound))
        if bar:
            bar.add(len(out[-1]))
    return np.concatenate(out)
