#!/usr/bin/env bash
# tools/dist_train.sh CONFIG PROCESSES [options of train.py]; on several machines with NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2p "$0" | cut -c3- >&2; exit 2; }
tools="$(dirname "$0")"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$tools/train.py" "$1" --launcher pytorch "${@:3}"
