#!/usr/bin/env bash
# Train on all GPUs of one machine, or of several that share a file system. A run that was stopped goes on.
#
#   launch/torchrun.sh RECIPE RUN [MORE WORDS OF titans train]
#   launch/torchrun.sh recipes/paper/340m.toml runs/340m --set training.sharding=fsdp
#
# Several machines: the same line on each, with NNODES (their number), NODE_RANK (0 on the first) and MASTER_ADDR (the
# name of the first) set. NPROC_PER_NODE is the number of processes of a machine, one for each GPU by default.
set -euo pipefail
recipe=${1:?the recipe is missing: launch/torchrun.sh RECIPE RUN}
run=${2:?the run folder is missing: launch/torchrun.sh RECIPE RUN}
shift 2

# Kubernetes' PyTorchJob sets these as PET_*, which torchrun reads itself.
export PET_NPROC_PER_NODE=${PET_NPROC_PER_NODE:-${NPROC_PER_NODE:-gpu}}
nodes=${PET_NNODES:-${NNODES:-1}}
if [[ $nodes == 1 ]]; then
    place=(--standalone)
else
    place=(
        --nnodes "$nodes" --node-rank "${PET_NODE_RANK:-${NODE_RANK:?its number is missing, 0 on the first machine}}"
        --master-addr "${PET_MASTER_ADDR:-${MASTER_ADDR:?the name of the first machine is missing}}"
        --master-port "${PET_MASTER_PORT:-${MASTER_PORT:-29500}}"
    )
fi
words=(train "$recipe" --output "$run" "$@")
if [[ -e $run/recipe.toml ]]; then
    words+=(--resume)
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${place[@]}" -m titanslab.cli "${words[@]}"
