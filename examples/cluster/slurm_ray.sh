#!/bin/bash
# Train on a Slurm cluster through Ray, with vLLM servers on machines of their own.
#   sbatch --nodes 4 examples/cluster/slurm_ray.sh my.toml     again, to continue: sbatch ... my.toml --resume
# The first SERVERS machines serve with vLLM (.venv-vllm, one server a card), Ray places the trainer on the others.
# The run directory and both environments must be on a disk that all machines share. The network must be private:
# neither Ray nor a server that takes new weights asks for a password.
#SBATCH --job-name=paragator
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00

set -euo pipefail
config=${1:?usage: sbatch $0 CONFIG [--resume] [--section.key VALUE ...]}
shift
servers=${SERVERS:-2} cards=${SLURM_GPUS_ON_NODE:-8} model=${MODEL:?set MODEL to the folder that model.path names}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[$servers]}
on() { srun --overlap --nodes 1 --ntasks 1 --nodelist "$1" "${@:2}"; }

urls=()
for host in "${hosts[@]:0:$servers}"; do
    for ((card = 0; card < cards; card++)); do
        on "$host" env CUDA_VISIBLE_DEVICES="$card" VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 \
            .venv-vllm/bin/python -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name policy \
            --dtype bfloat16 --logprobs-mode processed_logprobs --host "$host" --port "$((8000 + card))" &
        urls+=("\"http://$host:$((8000 + card))/v1\"")
    done
done
for host in "${hosts[@]:$servers}"; do
    if [[ $host == "$head" ]]; then
        on "$host" .venv/bin/ray start --block --head --port 6379 --num-gpus "$cards" --disable-usage-stats &
    else
        on "$host" .venv/bin/ray start --block --address "$head:6379" --num-gpus "$cards" --disable-usage-stats &
    fi
done
for url in "${urls[@]}"; do
    until curl --silent --fail --output /dev/null "${url//\"/}/models"; do sleep 5; done
done
until on "$head" .venv/bin/ray status --address "$head:6379" > /dev/null 2>&1; do sleep 5; done

list=$(IFS=,; echo "[${urls[*]}]")
on "$head" env RAY_ADDRESS="$head:6379" .venv/bin/paragator train "$config" \
    --train.backend ray --train.processes "$(((${#hosts[@]} - servers) * cards))" \
    --engine.kind vllm --engine.url "$list" --engine.model policy "$@"
