#!/bin/bash
# Train on several machines of a Slurm cluster: torchrun on each, one process a card.
#   sbatch examples/cluster/slurm_torchrun.sh my.toml          again, to continue: sbatch ... my.toml --resume
# The run directory and the environment .venv must be on a disk that all machines share.
#SBATCH --job-name=paragator
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120

set -euo pipefail
config=${1:?usage: sbatch $0 CONFIG [--resume] [--section.key VALUE ...]}
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 .venv/bin/torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
    -m paragator train "$config" "$@"
