"""Backend adapters: two files per framework, with the same functions in each.

Computing, in tensorflow.py, jax.py, torch.py:

`step(fn)`                     turns a stateful `train_step`/`test_step` body into what
                               the backend's `fit` calls
`minimize(model, fn, variables)`   one optimizer update of those variables only
`input_gradient(model, fn, x)`     d sum(fn(x)) / dx, itself differentiable (penalties)
`compile_function(model, fn, gradients)`   fn as one compiled function of its tensors
`program_sizes()`, `few_sizes(fn)`   batches of many sizes in few programs, on JAX
`record_gradients(gradients)`  a context: whether results carry a graph, on PyTorch
`convolution(x, kernel, pads, bias)`   padded on each side by its own number of zeros
`scan(fn, state, xs)`          a recurrence over the first axis, as one loop
`fused(fn)`                    an element-wise function in few passes over memory
`preserve_state(model)`        variables keep their values if `fit` raises
`sync_state(model)`            variables get the last step's values while `fit` runs
`concrete(x)`                  a tensor's values as NumPy, None while tracing

Devices, in tensorflow_devices.py, jax_devices.py, torch_devices.py:

`adapt(data)`                    data in the form that `fit` handles fastest
`allow_uneven_batches(data, batch_size)`   evaluation, though devices cannot share
                               a batch equally
`replica_rows(n)`              where in the batch of all devices the images at hand are
`replica_mean(values)`, `replica_loss(loss)`, `replica_gradients(gradients)`,
`replica_metrics(values, weight)`, `replica_sum(values)`   data-parallel averaging
`process()`                    which of how many processes that train together
`together(variables)`          processes wait, and go on from one state
`check_load()`                 warns of threads that will wait for cores
`use(kind, count)`             devices for what comes after
`device()`                     what the work runs on, in words

Nothing else in kgen imports TensorFlow, JAX or PyTorch, but for the TensorFlow that
data (tf.data) and export.py (SavedModel) import on use.
"""

import keras

name = keras.backend.backend()

if name == "tensorflow":
    from kgen.backend import tensorflow as _computing
    from kgen.backend import tensorflow_devices as _devices
elif name == "jax":
    from kgen.backend import jax as _computing
    from kgen.backend import jax_devices as _devices
elif name == "torch":
    from kgen.backend import torch as _computing
    from kgen.backend import torch_devices as _devices
else:
    raise ImportError(
        f"kgen runs on the Keras backends tensorflow, jax and torch; this process has "
        f"'{name}'. Set the environment variable KERAS_BACKEND before importing keras."
    )

step = _computing.step
minimize = _computing.minimize
input_gradient = _computing.input_gradient
compile_function = _computing.compile_function
program_sizes = _computing.program_sizes
few_sizes = _computing.few_sizes
record_gradients = _computing.record_gradients
convolution = _computing.convolution
scan = _computing.scan
fused = _computing.fused
preserve_state = _computing.preserve_state
sync_state = _computing.sync_state
concrete = _computing.concrete

adapt = _devices.adapt
allow_uneven_batches = _devices.allow_uneven_batches
replica_rows = _devices.replica_rows
replica_mean = _devices.replica_mean
replica_loss = _devices.replica_loss
replica_gradients = _devices.replica_gradients
replica_metrics = _devices.replica_metrics
replica_sum = _devices.replica_sum
process = _devices.process
together = _devices.together
check_load = _devices.check_load
use = _devices.use
device = _devices.device
