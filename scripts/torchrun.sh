#!/bin/sh
# One run on several hosts without a scheduler. On every host, with the repository and the run folder at the same paths
# (a shared file system):
#
#   HOSTS=2 MAIN=10.0.0.1 ADDRESS=10.0.0.2 sh scripts/torchrun.sh fit --config configs/classification/digits.yaml
#
# HOSTS     number of hosts
# MAIN      address of one of them, the same everywhere, where they meet
# ADDRESS   this host's own address, for the others to reach it by
# DEVICES   processes on each host, one per GPU (1)
# RESTARTS  how often all processes begin again, from the last checkpoint, when one of them has died (0)
# PORT      where they meet (29400)
# Several networks in a host: name the one to use, NCCL_SOCKET_IFNAME=eth0 (GPUs) or GLOO_SOCKET_IFNAME=eth0 (CPUs).
set -eu
: "${HOSTS:?number of hosts}" "${MAIN:?address of the host where all meet}" "${ADDRESS:?address of this host}"
DEVICES=${DEVICES:-1}
if [ "$ADDRESS" = "$MAIN" ]; then IS_MAIN=true; else IS_MAIN=false; fi  # torchrun guesses by the host's name
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$HOSTS" --nproc-per-node "$DEVICES" \
    --rdzv-backend c10d --rdzv-endpoint "$MAIN:${PORT:-29400}" --rdzv-id hem \
    --rdzv-conf "is_host=$IS_MAIN" --local-addr "$ADDRESS" \
    --max-restarts "${RESTARTS:-0}" \
    cli.py "$@" --trainer.num_nodes "$HOSTS" --trainer.devices "$DEVICES" --trainer.strategy ddp
