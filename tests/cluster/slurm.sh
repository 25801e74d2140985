#!/bin/bash
# A SLURM of one machine with two nodes runs scripts/slurm.sbatch: an array of runs, a run whose time is up, one whose
# node fails, and one over two nodes. Each must end with the weights and figures of an undisturbed run of one process.
# Before them an array whose jobs share a search: its trials must be those of one process; ONLY=search ends behind it.
# Needs root and apt-get install munge slurmctld slurmd slurm-client. About ten minutes, most of them waiting.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-$PWD/.venv/bin/python} OMP_NUM_THREADS=1
unset PYTHONPATH
if [ "$(id -u)" != 0 ]; then echo "skipped: the daemons need root"; exit 0; fi
for command in munged slurmctld slurmd srun sbatch; do
    if ! command -v $command >/dev/null; then
        echo "skipped: no $command (apt-get install munge slurmctld slurmd slurm-client)"; exit 0
    fi
done
HERE=$(mktemp -d /tmp/hem-slurm.XXXX)
RUNS=$HERE/runs
export SLURM_CONF=$HERE/slurm.conf
node() {  # start the daemon of a node
    slurmd -N "$1" -L "$HERE/$1.log" -D >/dev/null 2>&1 &
    echo $! >"$HERE/$1.pid"
}
fail() {  # a node dies with a job: its daemon, the steps of the job, and what they had started
    kill -9 "$(cat "$HERE/$1.pid")"
    for process in /proc/[0-9]*; do
        if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -qF "slurmstepd: [$2." ||
            { tr '\0' '\n' <"$process/environ" | grep -qx "SLURM_CONF=$SLURM_CONF" &&
                tr '\0' '\n' <"$process/environ" | grep -qx "SLURM_JOB_ID=$2"; } 2>/dev/null; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
}
cleanup() {
    scancel --user="$(id -un)" 2>/dev/null || true
    sleep 2
    for name in node0 node1 slurmctld munged; do kill "$(cat "$HERE/$name.pid")" 2>/dev/null || true; done
    sleep 2  # the controller writes its state once more
    if [ -n "${KEEP:-}" ]; then echo "kept: $HERE"; else rm -rf "$HERE"; fi
}
trap cleanup EXIT
chmod 755 "$HERE"
mkdir "$HERE/copy"  # the array writes into runs/, which is to be its own
cp -r cli.py configs hem scripts tests "$HERE/copy"
cd "$HERE/copy"
mkdir -p "$RUNS" "$HERE/state" "$HERE/munge"
dd if=/dev/urandom of="$HERE/munge/key" bs=128 count=1 status=none
chown -R munge "$HERE/munge"; chmod 700 "$HERE/munge/key"; chmod 711 "$HERE/munge"; chmod 400 "$HERE/munge/key"
runuser -u munge -- munged --foreground --socket="$HERE/munge/socket" --key-file="$HERE/munge/key" \
    --log-file="$HERE/munge/log" --pid-file="$HERE/munge/pid" --seed-file="$HERE/munge/seed" >/dev/null 2>&1 &
echo $! >"$HERE/munged.pid"
cat >"$SLURM_CONF" <<CONF
ClusterName=hem
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HERE/munge/socket
StateSaveLocation=$HERE/state
SlurmdSpoolDir=$HERE/%n
SlurmctldPidFile=$HERE/slurmctld.pid
SlurmdPidFile=$HERE/%n.daemon
SlurmctldLogFile=$HERE/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=15
KillWait=5
InactiveLimit=0
SlurmdParameters=config_overrides
NodeName=node0 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=1000
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=1000
PartitionName=all Nodes=node[0-1] Default=YES State=UP MaxTime=INFINITE
CONF
sleep 1
slurmctld -i -D >/dev/null 2>&1 &
echo $! >"$HERE/slurmctld.pid"
node node0; node node1
for _ in $(seq 60); do
    [ "$(sinfo --noheader --states=idle --Format=nodes 2>/dev/null | tr -d ' ')" = 2 ] && break; sleep 1
done
sinfo

COMMON="--config configs/classification/digits.yaml --config configs/loss/hem.yaml --model.net MLP
    --model.net.batch_norm false --trainer.accelerator cpu --trainer.enable_progress_bar false
    --trainer.enable_model_summary false"
submit() { sbatch --parsable --output="$HERE/%j.out" "$@"; }
finished() {  # wait for a job to leave the queue
    for _ in $(seq "$2"); do
        squeue --noheader --job "$1" 2>/dev/null | grep -q . || return 0
        sleep 1
    done
    squeue; scontrol show job "$1"; cat "$HERE/$1"*.out; return 1
}
figures() { "$PYTHON" cli.py test $COMMON --seed_everything "$2" --run_dir "$RUNS/$1" --ckpt_path last >/dev/null; }
compare() { "$PYTHON" tests/cluster/compare.py "$RUNS/$1" "$RUNS/$2"; }
SLOW="--trainer.callbacks+ tests.cluster.slow.Slow --trainer.callbacks.seconds"

echo "-- an array that shares a search: two losses, four trials each, two jobs to a loss"
cat >"$HERE/searched.yaml" <<STUDY
losses: [ce, hem]
seeds: [0, 1]
overrides: [--trainer.accelerator cpu --trainer.max_epochs 2]
tasks:
  - {train: configs/classification/digits.yaml, primary: test/accuracy}
search:
  trials: 4
  seed: 1000
  sampler: random     # of a trial's number alone, whichever trials are over by then
  storage: journal
  untuned: false
  space: {lr: {options: [--model.optimizer.lr, --model.lr_scheduler.max_lr], low: 0.005, high: 0.5, log: true}}
  losses: {hem: {margin: {options: [--model.loss.margin], low: 0.1, high: 8.0, log: true}}}
STUDY
trials() {  # what the storage has of each trial
    "$PYTHON" - "$RUNS/$1/searched" <<'END'
import sys
from hem.study.storage import library, open_storage
storage = open_storage(f"{sys.argv[1]}/search.journal")
for loss in ("ce", "hem"):
    for trial in library().load_study(study_name=f"classification_digits/{loss}", storage=storage).trials:
        print(loss, trial.number, trial.state.name, trial.params, trial.value)
END
}
study() { "$PYTHON" -m hem.study "$HERE/searched.yaml" --root "$RUNS/$1" "${@:2}"; }
study sent --dry-run --slurm timeout_min=20 | grep "an array of 4 jobs"
study sent --slurm timeout_min=20 >"$HERE/sent.txt"; cat "$HERE/sent.txt"
job=$(sed -n 's/^sent 4 jobs: \([0-9]*\)_0.*/\1/p' "$HERE/sent.txt")
finished "$job" 1200
study here --jobs 1 --only search/
trials sent >"$HERE/trials.txt"; cat "$HERE/trials.txt"
trials here | diff "$HERE/trials.txt" -
[ "$(grep -c COMPLETE "$HERE/trials.txt")" = 8 ]
study sent --dry-run --slurm | grep "6 runs, 6 done"
if [ "${ONLY:-}" = search ]; then echo "slurm: passed"; exit 0; fi

for seed in 0 1; do
    "$PYTHON" cli.py fit $COMMON --trainer.max_epochs 1 --seed_everything $seed --run_dir "$RUNS/one$seed"
    figures one$seed $seed
done

echo "-- an array of two runs, beside each other"
job=$(submit --array=0-1 --time=30 scripts/slurm.sbatch $COMMON --trainer.max_epochs 1)
finished "$job" 900
for seed in 0 1; do
    mv "runs/classification_digits/hem/seed$seed" "$RUNS/array$seed"
    figures array$seed $seed
    compare one$seed array$seed
done

echo "-- a run whose time is up"
job=$(submit --time=3 --signal=SIGUSR1@60 scripts/slurm.sbatch $COMMON --trainer.max_epochs 1 --run_dir "$RUNS/time" $SLOW 8)
finished "$job" 1800
grep -h "stopped by a signal" "$HERE/$job.out"
figures time 0
compare one0 time

echo "-- a run whose node fails"
job=$(submit --time=30 scripts/slurm.sbatch $COMMON --trainer.max_epochs 1 --run_dir "$RUNS/failure" --watch.save_steps 2 $SLOW 2)
until [ -e "$RUNS/failure/checkpoints/last.ckpt" ]; do sleep 0.2; done
where=$(squeue --noheader --job "$job" --Format=NodeList | tr -d ' ')
fail "$where" "$job"
echo "$where failed"
for _ in $(seq 120); do
    now=$(squeue --noheader --job "$job" --Format=NodeList,StateCompact | xargs)
    case "$now" in "$where "*) sleep 1 ;; *) break ;; esac
done
finished "$job" 900
figures failure 0
compare one0 failure
node "$where"

echo "-- a run over two nodes"
export MASTER_ADDR=127.0.0.1  # the nodes' names are known to SLURM alone
job=$(submit --nodes=2 --time=30 scripts/slurm.sbatch $COMMON --trainer.max_epochs 1 --run_dir "$RUNS/nodes" --trainer.strategy ddp)
finished "$job" 900
figures nodes 0
compare one0 nodes
echo "slurm: passed"
