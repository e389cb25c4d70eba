"""How a run was launched: one process, or several by torchrun or Ray. No heavy imports."""

from __future__ import annotations

import os

from paragator.core.errors import UsageError

OTHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}
"""What other launchers say of how many processes they started."""


def launched() -> bool:
    """Whether a launcher started this process as one of a run's."""
    return "WORLD_SIZE" in os.environ


def processes() -> int:
    """How many processes share this run; UsageError for a launch that looks like several and is not."""
    if launched():
        return int(os.environ["WORLD_SIZE"])
    how = "start several processes by `torchrun --nproc-per-node N -m paragator train CONFIG`"
    if any(name.startswith("ACCELERATE_") and name != "ACCELERATE_TORCH_DEVICE" for name in os.environ):
        raise UsageError(f"accelerate launch started one process without a rank; {how}, and one without a launcher")
    for name, launcher in OTHERS.items():
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise UsageError(f"{launcher} started {os.environ[name]} processes ({name}) without WORLD_SIZE; {how}")
    return 1


def rank() -> int:
    """This process's number among them; 0 is the one that decides, samples and writes."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def check_processes(wanted: int | None, parts: int = 1) -> None:
    """UsageError where other processes were started than `train.processes` and `train.tensor_parallel` want."""
    if wanted not in (None, (found := processes())):
        how = f"`torchrun --nproc-per-node {wanted} -m paragator train CONFIG`, or train.backend = 'ray'"
        raise UsageError(f"train.processes = {wanted}, but {found} started: use {how}; or set train.processes")
    if found % parts:
        how = f"start a multiple of {parts} by torchrun, or set it to 1"
        raise UsageError(f"train.tensor_parallel = {parts} does not divide the {found} of this run's processes: {how}")
