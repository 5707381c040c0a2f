"""Times a training step of Gated PixelCNN (28x28x1 binary, a 7x7 block and 7 blocks of
3x3, 32 filters, batch 64) through `fit` on each backend, beside the same network in
plain PyTorch with masked full-size kernels, as it is often written.

    python tests/benchmarks/bench_gated_pixel_cnn.py          (or `make bench`)

The share of the machine's matrix rate counts the multiplications that the network
needs, masked ones left out, forward once and backward twice, against a float32 matrix
product measured in the same turn. Writes results/gated_pixel_cnn_step.md.
"""

import statistics
import sys
import time

from side_by_side import (
    BACKENDS,
    fit_epoch,
    name,
    ratio,
    step_milliseconds,
    take_turns,
    where,
    write,
)

BATCH, STEPS, REPEATS = 64, 12, 3
F, BLOCKS = 32, 7
BASELINE = "plain PyTorch"
CHANNELS_LAST = "plain PyTorch, channels_last"
MATRICES = "matrix product, GFLOP/s"


def images(n):
    import numpy as np

    rng = np.random.default_rng(0)
    return (rng.random((n, 28, 28, 1)) < 0.13).astype("uint8")


def flops():
    """Of one step."""
    first = 3 * 7 * 2 * F + 3 * 2 * F  # above; to the left
    block = 6 * F * 2 * F + 2 * F * 2 * F
    link_and_out = 2 * F * 2 * F + F * F
    pixel = first + BLOCKS * block + (BLOCKS + 1) * link_and_out + F * F + F
    return 3 * 2 * pixel * 784 * BATCH


def kgen_epoch():
    """A function that trains for STEPS steps and calls `tick` after each."""
    import keras

    import kgen

    model = kgen.models.GatedPixelCNN((28, 28, 1), filters=F, num_blocks=BLOCKS)
    model.compile(keras.optimizers.Adam(1e-3))
    return fit_epoch(model, images(STEPS * BATCH), BATCH)


def plain_torch_epoch(channels_last):
    """The same, as one would write it in PyTorch without a library."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Masked(nn.Conv2d):
        """mask: (kernel rows, kernel columns) of 0 and 1."""

        def __init__(self, inputs, outputs, mask):
            size = tuple(mask.shape)
            super().__init__(inputs, outputs, size, padding=[s // 2 for s in size])
            self.register_buffer("mask", mask)

        def forward(self, x):
            kernel = self.weight * self.mask
            return functional.conv2d(x, kernel, self.bias, padding=self.padding)

    class Block(nn.Module):
        def __init__(self, inputs, k, first):
            super().__init__()
            rows, row = torch.ones(k, k), torch.ones(1, k)
            rows[k // 2 + (0 if first else 1) :] = 0
            row[:, k // 2 + (0 if first else 1) :] = 0
            self.first = first
            self.vertical = Masked(inputs, 2 * F, rows)
            self.horizontal = Masked(inputs, 2 * F, row)
            self.link = nn.Conv2d(2 * F, 2 * F, 1, bias=False)
            self.out = nn.Conv2d(F, F, 1)

        def forward(self, v, h):
            v = self.vertical(v)
            out = self.out(gated(self.horizontal(h) + self.link(v)))
            return gated(v), out if self.first else h + out

    def gated(x):
        f, g = x.chunk(2, dim=1)
        return torch.tanh(f) * torch.sigmoid(g)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = [Block(1, 7, True)] + [Block(F, 3, False) for _ in range(BLOCKS)]
            self.blocks = nn.ModuleList(blocks)
            self.head = nn.ModuleList([nn.Conv2d(F, F, 1), nn.Conv2d(F, 1, 1)])

        def forward(self, x):
            v = h = x
            for block in self.blocks:
                v, h = block(v, h)
            for layer in self.head:
                h = layer(torch.relu(h))
            return h

    net = Net()
    x = torch.tensor(images(STEPS * BATCH)).permute(0, 3, 1, 2).float()
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    data = torch.utils.data.TensorDataset(x)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True)
    cross_entropy = functional.binary_cross_entropy_with_logits

    def epoch(tick):
        total = 0.0
        for (batch,) in loader:
            loss = cross_entropy(net(batch), batch, reduction="sum") / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            tick()

    return epoch


def matrix_rate():
    import torch

    a = torch.randn(2048, 2048)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times) / 1e9


def measure(what):
    """Milliseconds a step, in this process."""
    if what == MATRICES:
        return matrix_rate()
    if what in BACKENDS:
        return step_milliseconds(kgen_epoch())
    return step_milliseconds(plain_torch_epoch(what == CHANNELS_LAST))


def main():
    cases = (MATRICES, BASELINE, CHANNELS_LAST, *BACKENDS)
    numbers = take_turns(__file__, cases, REPEATS)
    rates = numbers.pop(MATRICES)
    rows = []
    for what, times in numbers.items():
        pairs = zip(times, rates, strict=True)
        share = statistics.median(flops() / (t * 1e6 * r) for t, r in pairs)
        rows.append(
            f"| {name(what)} | {statistics.median(times):.0f} | "
            f"{min(times):.0f}-{max(times):.0f} | "
            f"{ratio(numbers, what, BASELINE):.2f} | "
            f"{ratio(numbers, what, CHANNELS_LAST):.2f} | {share:.0%} |"
        )
    write(
        "gated_pixel_cnn_step.md",
        [
            "# A training step of Gated PixelCNN",
            "",
            f"28x28x1 binary, 7x7 then {BLOCKS} blocks of 3x3, {F} filters, batch "
            f"{BATCH}, `fit`; ratios are to plain PyTorch with masked full-size "
            f"kernels. Matrix rate: {statistics.median(rates):.0f} GFLOP/s; a step "
            f"needs {flops() / 1e9:.1f} GFLOP.",
            where(),
            "",
            "| | ms/step, median | range | ratio | to channels_last | matrix rate |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
    else:
        main()
