"""A row of samples for each recipe that left some, on one picture: what its numbers are
the numbers of."""

from pathlib import Path

import numpy as np

from kgen import files

# In pixels: side of an image, space between images, around captions, between columns;
# and the captions' font, which at 10 leaves no space between words.
_SIDE, _SPACE, _MARGIN, _GUTTER, _FONT = 56, 2, 6, 24, 14


def tiles(path):
    """The images of a grid that `kgen.callbacks.save_grid` drew: (N, height, width, 3)
    uint8, row by row. A grey line ends each.

    Raises:
        ValueError: it is no such grid.
    """
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    steps = []
    for axis in (0, 1):
        grey = (pixels == 90).all(axis=(1 - axis, 2))  # a whole line
        if not grey.any():
            raise ValueError(f"{path} has no grey lines between images, as a grid has.")
        first = int(np.argmax(grey))
        steps.append(first + int(np.argmin(grey[first:])))
        steps[-1] = steps[-1] if not grey[first:].all() else len(grey)
    height, width = steps
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    cells = pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    return cells.reshape(-1, height, width, 3)


def _in_order(found, known):
    """(recipe, its first run's card), those that are known first and in their order."""
    first = {}
    for cards in found:
        first.setdefault(cards[0]["recipe"], cards[0])
    order = [*(r for r in known if r in first), *sorted(set(first) - set(known))]
    return [(recipe, first[recipe]) for recipe in order]


def _rows(found, known):
    """(name, path of the samples' grid) of each row."""
    from kgen.results import runs_of

    rows = []
    for recipe, card in _in_order(found, known):
        runs = runs_of(card["results"]) or card["results"].get("runs", [])
        alike = runs and runs[0].startswith("seed_")
        for grid in ["samples", *(runs[:1] if alike else runs)]:
            file = card["path"].parent / f"{grid}.png"
            if file.exists():
                own = "" if alike or grid == "samples" else f"\n{grid}"
                name = known.get(recipe, {}).get("system", recipe).replace(", ", "\n")
                name += f"{own.replace('_', ' ')}\n{card['data'].split()[0]}"
                rows.append((name, file))
    return rows


def _extent(name, pen, font):
    """Right and lower end of a caption that is drawn at (0, 0)."""
    return pen.multiline_textbbox((0, 0), name, font, spacing=_SPACE)[2:]


def draw(found, known, path, n=8, columns=2):
    """Draws the picture, a PNG, and returns its path. Captions, to the left of their
    row, have the width of the longest.

    Args:
        found: the runs' cards, as of `kgen.results.records`.
        known: {recipe: {"system": its name, ...}}, in the order of the rows.
        path: of the picture.
        n: images a row.
        columns: rows beside one another; they are read downwards.

    Raises:
        ValueError: there are no samples.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = _rows(found, known)
    if not rows:
        raise ValueError("No samples.png beside a metrics.json.")
    font = ImageFont.load_default(_FONT)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    extents = [_extent(name, pen, font) for name, _ in rows]
    caption = 2 * _MARGIN + int(np.ceil(max(right for right, _ in extents)))
    tall = max(_SIDE + 4, _MARGIN + int(np.ceil(max(low for _, low in extents))))
    columns = min(columns, len(rows))
    high, wide = -(-len(rows) // columns), caption + n * (_SIDE + _SPACE)
    size = columns * wide + (columns - 1) * _GUTTER, high * tall
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for row, (name, file) in enumerate(rows):
        left, top = row // high * (wide + _GUTTER), row % high * tall
        at = left + _MARGIN, top + 2
        pen.multiline_text(at, name, "black", font, spacing=_SPACE)
        for i, cell in enumerate(tiles(file)[:n]):
            cell = Image.fromarray(cell).resize((_SIDE,) * 2, Image.Resampling.NEAREST)
            page.paste(cell, (left + caption + i * (_SIDE + _SPACE), top))
    with files.atomic(path) as unfinished:
        page.save(unfinished)
    return Path(path)
