"""Checks of arguments, for which no framework is needed. Errors give what was expected
and what came."""

import numpy as np


def is_integer(value):
    """Whether it is an int of Python or NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value):
    """Whether it is an int or a float of Python or NumPy."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def sizes(name, values):
    """`values` as a tuple of positive ints; a ValueError otherwise."""
    fits = isinstance(values, (tuple, list)) and all(
        is_integer(v) and v >= 1 for v in values
    )
    if not fits:
        raise ValueError(
            f"{name} must be a tuple of positive integers; got {values!r}."
        )
    return tuple(int(v) for v in values)


def multiples(channels, **widths):
    """Raises a ValueError unless each width is a positive multiple of `channels`: so
    many features belong to each channel of the image."""
    for name, width in widths.items():
        if not is_integer(width) or width < 1 or width % channels:
            raise ValueError(
                f"{name} must be a positive multiple of the image's {channels} "
                f"channel(s); got {width!r}."
            )


def positive(**values):
    """Raises a ValueError unless each is a positive int."""
    for name, value in values.items():
        if not is_integer(value) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")


def odd(least=1, **kernel_sizes):
    """Raises a ValueError unless each is an odd int, at least `least`: kernels are
    centred, and one that leaves its centre out needs 3 to see anything."""
    for name, size in kernel_sizes.items():
        if not is_integer(size) or size < least or size % 2 == 0:
            raise ValueError(
                f"{name} must be an odd integer, {least} or more; got {size!r}."
            )


def check_temperature(value):
    """A positive finite number as float32; a ValueError otherwise."""
    if not is_number(value) or not 1e-30 <= value <= 1e30:  # float32 has no more
        raise ValueError(
            "temperature must be a positive number, 1 for the model's own "
            f"distribution, in 1e-30..1e30; got {value!r}."
        )
    return np.float32(value)


def portable(config):
    """A serialised configuration without names that only PyTorch's Keras has: there
    an Adam is saved as a private subclass, which other backends load and cannot use."""
    if isinstance(config, dict):
        config = {k: portable(v) for k, v in config.items()}
        if ".torch.optimizers." in (config.get("module") or ""):
            config |= {"module": "keras.optimizers", "registered_name": None}
    return config


def one_of(name, value, values):
    """Raises a ValueError unless `value` is one of `values`."""
    if value not in values:
        names = ", ".join(map(repr, values))
        raise ValueError(f"{name} must be one of {names}; got {value!r}.")


def not_negative(**values):
    """Raises a ValueError unless each is finite and at least 0."""
    for name, value in values.items():
        if not is_number(value) or not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number, not negative; got {value!r}.")


def fraction(**values):
    """Raises a ValueError unless each is in [0, 1)."""
    for name, value in values.items():
        if not is_number(value) or not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be in 0..1, and below 1; got {value!r}.")


def boolean(**values):
    """Raises a ValueError unless each is True or False."""
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False; got {value!r}.")
