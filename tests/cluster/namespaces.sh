#!/bin/bash
# Three "hosts", network namespaces behind a switch, train and test one network through scripts/torchrun.sh; then once
# more, a process is killed in the middle, and the same command is given again. Weights and figures must be those of one process. Needs root and iproute2.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-$PWD/.venv/bin/python} OMP_NUM_THREADS=1
if [ "$(id -u)" != 0 ]; then echo "skipped: network namespaces need root"; exit 0; fi
if ! command -v ip >/dev/null; then echo "skipped: no ip command (apt-get install iproute2)"; exit 0; fi
HOSTS=3
RUNS=$(mktemp -d)
cleanup() {
    if [ -n "${KEEP:-}" ]; then echo "kept: $RUNS"; else rm -rf "$RUNS"; fi
    for host in $(seq 0 $((HOSTS - 1))); do
        ip netns pids "hem-$host" 2>/dev/null | xargs -r kill -9 || true
        ip netns delete "hem-$host" 2>/dev/null || true
    done
    ip netns delete hem-switch 2>/dev/null || true
}
trap cleanup EXIT
ip netns add hem-switch
ip -n hem-switch link add switch type bridge
ip -n hem-switch link set switch up
for host in $(seq 0 $((HOSTS - 1))); do
    ip netns add "hem-$host"
    ip link add "port$host" netns hem-switch type veth peer name eth0 netns "hem-$host"
    ip -n hem-switch link set "port$host" master switch up
    ip -n "hem-$host" address add "10.77.0.$((host + 1))/24" dev eth0
    ip -n "hem-$host" link set eth0 up
    ip -n "hem-$host" link set lo up
done

(ip netns exec hem-0 "$PYTHON" -c "
import socket
with socket.create_server(('10.77.0.1', 29400)) as server: server.accept()" &)
ip netns exec hem-1 "$PYTHON" -c "
import socket, time
for _ in range(50):
    try: socket.create_connection(('10.77.0.1', 29400), timeout=5); break
    except ConnectionRefusedError: time.sleep(0.1)
else: raise SystemExit('the namespaces do not reach each other')"

# batch statistics are per process: a network without them
COMMON="--config configs/classification/digits.yaml --config configs/loss/hem.yaml --model.net MLP
    --model.net.batch_norm false --data.batch_size 60 --trainer.accelerator cpu --trainer.enable_progress_bar false
    --trainer.enable_model_summary false"
one() { "$PYTHON" cli.py "$1" $COMMON "${@:2}" >/dev/null; }
all() {  # the same command on every host
    local pids=()
    for host in $(seq 0 $((HOSTS - 1))); do
        HOSTS=$HOSTS MAIN=10.77.0.1 ADDRESS="10.77.0.$((host + 1))" GLOO_SOCKET_IFNAME=eth0 \
            ip netns exec "hem-$host" sh scripts/torchrun.sh "$1" $COMMON "${@:2}" >>"$RUNS/log$host" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || { cat "$RUNS"/log*; return 1; }; done
}

one fit --run_dir "$RUNS/one" --trainer.max_epochs 1
one test --run_dir "$RUNS/one" --ckpt_path last
all fit --run_dir "$RUNS/three" --trainer.max_epochs 1
all test --run_dir "$RUNS/three" --ckpt_path last
"$PYTHON" tests/cluster/compare.py "$RUNS/one" "$RUNS/three"

# in float64: over several epochs a sample may come to lie on HEM's margin to within float32's rounding, which differs
long="--trainer.max_epochs 4 --trainer.precision 64-true"
one fit --run_dir "$RUNS/long" $long
one test --run_dir "$RUNS/long" --ckpt_path last $long
(
    until [ -e "$RUNS/killed/checkpoints/last.ckpt" ]; do sleep 0.02; done
    # the training process, not torchrun, of the second host
    victim=$(ip netns pids hem-1 | while read -r pid; do
        tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "python.* -u cli.py" && echo "$pid"; done | head -1)
    kill -9 "$victim"
    echo "killed process $victim on the second host"
) &
again="--run_dir $RUNS/killed $long --watch.save_steps 2 --ckpt_path auto"
if all fit $again >/dev/null; then echo "nobody noticed that a process was killed"; exit 1; fi
all fit $again
one test --run_dir "$RUNS/killed" --ckpt_path last $long
"$PYTHON" tests/cluster/compare.py "$RUNS/long" "$RUNS/killed"
echo "namespaces: passed"
