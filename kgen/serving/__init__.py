"""Behind TensorFlow Serving: a client, and what the server is to be told.

    kgen.serving.write_config("saved_models")  # models.config, batching.config
    client = kgen.serving.Client("http://localhost:8501", "vae_digits")
    images = client.sample(4, seed=7)  # what model.sample(4, seed=7) draws

`python -m kgen.serving serve` starts a server, `python -m kgen.serving sample NAME`
draws a picture from it.
"""

from kgen.serving.client import Client, ServingError
from kgen.serving.config import write_config

__all__ = ["Client", "ServingError", "write_config"]
