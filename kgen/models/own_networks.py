"""Networks of the user's own, as parts of a model: checked, and kept in its
configuration.

Shapes: B batch, K classes.
"""

import keras


def check_network(name, network, source, num_classes, target):
    """Raises a ValueError unless `network` maps (B, *source) [and (B, K)] to
    (B, *target)."""
    if not isinstance(network, keras.Layer):
        raise ValueError(f"{name} must be a Keras model; got {network!r}.")
    for layer in network._flatten_layers():
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(
                f"{name}: the activity_regularizer of layer '{layer.name}' would count "
                "differently on each backend; put it into a loss of your own."
            )
    given = symbolic_output(network, source, num_classes)
    if tuple(getattr(given, "shape", ())) != (None, *target):
        got = getattr(given, "shape", f"{type(given).__name__} of outputs")
        raise ValueError(f"{name} must give {(None, *target)}; got {got}.")


def symbolic_output(network, source, num_classes):
    """The symbolic output for inputs (None, *source) [and labels (None, K)]."""
    x = keras.KerasTensor((None, *source))
    x = [x, keras.KerasTensor((None, num_classes))] if num_classes else x
    try:
        return network(x)
    except (ValueError, TypeError) as error:
        labels = f" and one-hot labels (None, {num_classes})" if num_classes else ""
        raise ValueError(
            f"The network '{network.name}' must take {(None, *source)}{labels}; it "
            f"failed: {error}"
        ) from error


def serialize_networks(model, names):
    """For `get_config`: {name: configuration} of those that are the user's own."""
    serialize = keras.saving.serialize_keras_object
    return {name: serialize(getattr(model, name)) for name in names}


def deserialize_networks(config, *names):
    """For `from_config`: the configuration with its networks made."""
    own = {name: config[name] for name in names if name in config}
    make = keras.saving.deserialize_keras_object
    return config | {name: make(network) for name, network in own.items()}
