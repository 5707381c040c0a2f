"""Image files from others: each is decoded rightly, or refused by an error with its
name."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kgen import data
from kgen.data.images import read_image

pytestmark = pytest.mark.once
RAMP = np.arange(64, dtype="uint16").reshape(8, 8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"


def png_header(width, height):
    """A PNG file that ends after the header of an image of this size."""

    def chunk(kind, body):
        sum_ = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sum_

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content, words",
    [
        (EPS, "cannot identify image file"),
        (b"", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 99, "cannot identify"),
        (png_header(12000, 12000), "144000000 pixels.*MAX_IMAGE_PIXELS"),
        (png_header(60000, 60000), "3600000000 pixels.*MAX_IMAGE_PIXELS"),
        (np.float32(RAMP / 64), "32 bits"),
        (np.int32(RAMP * 1000), "32 bits"),
        (RAMP * 64, "16-bit values that end at 4032"),
    ],
)
def test_other_contents_raise(content, words, tmp_path, monkeypatch):
    """PostScript too, which Pillow would hand to Ghostscript."""
    monkeypatch.setattr("subprocess.Popen", None)  # no program is started
    path = tmp_path / ("x.png" if isinstance(content, bytes) else "x.tiff")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(ValueError, match=f"(?s)cannot read the image .*{words}") as e:
        read_image(path, None, 1)
    assert str(path) in str(e.value)


def test_pipes_and_folders_raise(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png .not a regular file"):
        data.load(tmp_path)
    (tmp_path / "x.png").unlink()
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ValueError, match="x.png .not a regular file"):
        data.load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_images_of_16_bits_keep_the_upper_8(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    image = Image.fromarray(RAMP * 1040)
    if suffix == "pgm":
        header = b"P5 8 8 65535\n"
        path.write_bytes(header + (RAMP * 1040).astype(">u2").tobytes())
    else:
        image.save(path)
    read = read_image(path, None, 1)[..., 0]
    np.testing.assert_array_equal(read, RAMP * 1040 >> 8)


def test_sources_that_are_no_images_raise(tmp_path):
    for source, words in (
        ("images.npz", "numpy.load"),
        (tmp_path / "none", "an existing folder"),
        ("./none", "an existing folder"),
    ):
        with pytest.raises(ValueError, match=words):
            data.load(source)
    with pytest.raises(ValueError, match="data_dir: there is no folder"):
        data.load("mnist", data_dir=tmp_path / "none")
