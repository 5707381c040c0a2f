"""The seam between kgen and the frameworks: a file per backend, of one outline.

`step(fn)`                     turns a stateful `train_step`/`test_step` body into what
                               the backend's `fit` calls
`minimize(model, fn, variables)`   one optimizer update of those variables only
`input_gradient(model, fn, x)`     d sum(fn(x)) / dx, itself differentiable (penalties)
`fed(data)`                    data as the backend's `fit` takes them best
`compiled(model, fn, gradients)`   fn as one compiled function of its tensors
`replica_rows(n)`              where in the batch of all devices the images at hand are
`replica_mean(values)`, `replica_loss(loss)`, `replica_gradients(gradients)`,
`replica_metrics(values, weight)`   data-parallel averaging
`convolution(x, kernel, pads, bias)`   padded on each side by its own number of zeros
`scan(fn, state, xs)`          a recurrence over the first axis, as one loop
`fused(fn)`                    an element-wise function in few passes over memory
`concrete(x)`                  a tensor's values as NumPy, None while tracing
`process()`                    which of how many processes that train together
`together(variables)`          processes wait, and go on from one state
`use(kind, count)`             devices for what comes after
`device()`                     what the work runs on, in words

Nothing else in kgen imports TensorFlow, JAX or PyTorch, but for the TensorFlow that
data (tf.data) and export.py (SavedModel) import on use.
"""

import keras

name = keras.backend.backend()

if name == "tensorflow":
    from kgen.backend import tensorflow as _implementation
elif name == "jax":
    from kgen.backend import jax as _implementation
elif name == "torch":
    from kgen.backend import torch as _implementation
else:
    raise ImportError(
        f"kgen runs on the Keras backends tensorflow, jax and torch; this process has "
        f"'{name}'. Set the environment variable KERAS_BACKEND before importing keras."
    )

step = _implementation.step
minimize = _implementation.minimize
input_gradient = _implementation.input_gradient
fed = _implementation.fed
compiled = _implementation.compiled
replica_rows = _implementation.replica_rows
replica_mean = _implementation.replica_mean
replica_loss = _implementation.replica_loss
replica_gradients = _implementation.replica_gradients
replica_metrics = _implementation.replica_metrics
convolution = _implementation.convolution
scan = _implementation.scan
fused = _implementation.fused
concrete = _implementation.concrete
process = _implementation.process
together = _implementation.together
use = _implementation.use
device = _implementation.device
