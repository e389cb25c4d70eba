"""Devices, and the seconds that one piece of work takes on them: a roofline with stated efficiencies. No torch.

Peaks are data sheets' figures. Efficiencies are assumptions until somebody measures them: `benchmarks/plan.py` does so on a CPU.
docs/plan.md explains the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from paragator.core.errors import UsageError
from paragator.planning.estimate import pass_flops
from paragator.training.memory import Shape


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device and its share of the network; rates are peaks in one direction."""

    name: str
    flops_s: float
    """FLOP/s of dense products in the training precision."""
    memory_bytes_s: float
    """Bytes/s of its memory."""
    memory_bytes: float
    """Size of its memory."""
    link_bytes_s: float
    """Bytes/s to the other devices of its host."""
    network_bytes_s: float
    """Bytes/s to devices of other hosts."""
    value_bytes: float = 2
    """Bytes of a weight and of a key or value while sampling."""


PRESETS = {
    # NVIDIA H100 SXM data sheet: 1,979 TFLOP/s bfloat16 "with sparsity", so 989 dense; 80 GB HBM3 at 3.35 TB/s; NVLink 900 GB/s in
    # both directions together. DGX H100 data sheet: eight ConnectX-7 of 400 Gb/s for eight GPUs.
    "h100": Hardware("H100 SXM 80GB", 989e12, 3.35e12, 80e9, 450e9, 50e9),
    # NVIDIA H200 SXM data sheet: the H100's rates with 141 GB HBM3e at 4.8 TB/s. DGX H200: 400 Gb/s a GPU.
    "h200": Hardware("H200 SXM 141GB", 989e12, 4.8e12, 141e9, 450e9, 50e9),
    # NVIDIA A100 80GB SXM data sheet: 312 TFLOP/s bfloat16 dense; 2,039 GB/s; NVLink 600 GB/s in both directions together.
    # DGX A100 data sheet: eight ConnectX-6 of 200 Gb/s for eight GPUs.
    "a100": Hardware("A100 SXM 80GB", 312e12, 2.039e12, 80e9, 300e9, 25e9),
    # No data sheet: the order of magnitude of two cores in float32. Give your own with --assume.
    "cpu": Hardware("CPU, two cores", 1e11, 2e10, 16e9, 1e10, 1e9, value_bytes=4),
}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of a peak is reached, and what comes on top. The defaults are assumptions, not measurements."""

    update_share: float = 0.40
    """Of peak FLOP/s in the update, recomputation counted as work."""
    prefill_share: float = 0.50
    """Of peak FLOP/s while prompts are read."""
    decode_share: float = 0.50
    """Of peak FLOP/s while a batch makes one token a row."""
    memory_share: float = 0.70
    """Of peak memory bandwidth while decoding."""
    network_share: float = 0.60
    """Of link and network bandwidth."""
    parallel_share: float = 0.90
    """Of a rate, left by each doubling of the tensor-parallel degree: its communication, and experts that wait for each other."""
    overlap_share: float = 1.0
    """1: memory traffic and arithmetic of a decode step overlap and the longer counts; 0: their sum counts."""
    decode_s: float = 0.003
    """Of a decode step beside the roofline: launches, scheduling."""
    row_s: float = 0.0
    """Of a decode step for each row beside the roofline: sampling."""
    prefill_s: float = 0.003
    """Of a prefill beside its FLOPs."""
    batch_s: float = 0.02
    """Of a micro-batch beside its FLOPs."""
    update_s: float = 0.5
    """Of an update beside its micro-batches and the exchange of gradients."""
    grade_s: float = 0.01
    """To grade one solution."""
    graders: float = 16
    """Solutions graded at once."""


def assumed(hardware: Hardware, efficiency: Efficiency, settings: Sequence[str]) -> tuple[Hardware, Efficiency]:
    """Both with "name=value" settings put in. UsageError for an unknown name or a value that cannot be."""
    device, share = asdict(hardware), asdict(efficiency)
    del device["name"]
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in device | share:
            raise UsageError(f"--assume {setting}: {name!r} is not known; use {', '.join(device | share)}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        least = 0 if (name.endswith("_s") and name in share) or name == "overlap_share" else 1e-12
        most = 1 if name.endswith("_share") else 1e30
        if not least <= value <= most:
            raise UsageError(f"--assume {setting}: {name} is a number from {least:g} to {most:g}")
        if name in device:
            device[name] = value
        else:
            share[name] = value
    return replace(hardware, **device), replace(efficiency, **share)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a model's work on `parallel` devices that share each product."""

    shape: Shape
    hardware: Hardware
    efficiency: Efficiency
    parallel: int = 1

    @property
    def devices(self) -> float:
        """What `parallel` devices are worth, after their communication."""
        return float(self.parallel * self.efficiency.parallel_share ** math.log2(self.parallel))

    @property
    def kv_bytes(self) -> float:
        """Bytes of the keys and values of one token."""
        return 2 * self.shape.layers * self.shape.kv * self.hardware.value_bytes

    def weight_bytes(self, rows: float = math.inf) -> float:
        """Bytes of the weights that a forward pass of `rows` tokens reads: with experts, those that any row is sent to."""
        shape = self.shape
        hit = 1 - (1 - shape.used / shape.experts) ** rows if shape.experts > 1 else 1.0
        rare = shape.parameters - shape.weights(0)
        return self.hardware.value_bytes * (shape.parameters - rare * (1 - hit))

    def decode_step_s(self, rows: float, kv_tokens: float) -> float:
        """One token for each of `rows` rows, which read `kv_tokens` tokens of cache together."""
        e, h = self.efficiency, self.hardware
        traffic = (self.weight_bytes(rows) + kv_tokens * self.kv_bytes) / (h.memory_bytes_s * e.memory_share)
        work = pass_flops(self.shape, rows, kv_tokens / rows, rows) / (h.flops_s * e.decode_share)
        both = max(traffic, work) + (1 - e.overlap_share) * min(traffic, work)
        return both / self.devices + e.decode_s + rows * e.row_s

    def prefill_flop(self, tokens: float) -> float:
        """FLOPs of reading a prompt; one token of it is predicted from."""
        return pass_flops(self.shape, tokens, tokens / 2, 1)

    def prefill_rate(self) -> float:
        """FLOP/s."""
        return self.hardware.flops_s * self.efficiency.prefill_share * self.devices

    def update_rate(self) -> float:
        """FLOP/s."""
        return self.hardware.flops_s * self.efficiency.update_share * self.devices

    def exchange_s(self, copies: int, network: bool) -> float:
        """Adding up float32 gradients over `copies` holders in a ring, each of whose devices has its share."""
        volume = 2 * 4 * self.shape.parameters / self.parallel * (copies - 1) / copies
        return volume / self.speed(network)

    def publish_s(self, network: bool) -> float:
        """Every device of a replica takes its share of the weights; all replicas at once."""
        return self.weight_bytes() / self.parallel / self.speed(network)

    def speed(self, network: bool) -> float:
        """Bytes/s in and out of a device: to another host, or within one."""
        h = self.hardware
        return (h.network_bytes_s if network else h.link_bytes_s) * self.efficiency.network_share
