#!/usr/bin/env bash
# The quick study and its report (`make study`) as a former commit did them, and as this one does, in turn.
#
#     bash benchmarks/study.sh 9ec4e36 [ROUNDS]    # on an idle machine; 8 minutes a round on 2 cores
#
# 9ec4e36 is the last commit that started a new interpreter for each command. Each round prints the wall time of both and what the whole
# machine computed meanwhile; the last line is the ratio of the sums. The environment is that of this checkout's .venv.
set -euo pipefail
former=${1:?the commit to compare with} rounds=${2:-3}
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'for tree in old new; do git -C "$here" worktree remove --force "$work/$tree"; done; rm -rf "$work"' EXIT
git -C "$here" worktree add -q --detach "$work/old" "$former"
git -C "$here" worktree add -q --detach "$work/new" HEAD

busy() {  # processor seconds of the machine so far, also of processes that nobody waits for
    awk '/^cpu / {print ($2 + $3 + $4 + $7 + $8) / 100}' /proc/stat
}
study() {  # TREE OPTIONS...
    (cd "$work/$1" && export PYTHONPATH=$PWD && shift && rm -rf runs && python=$here/.venv/bin/python &&
        $python -m hem.study configs/study/quick.yaml "$@" && $python -m hem.report runs/quick) >"$work/$1.log" 2>&1 ||
        { tail -5 "$work/$1.log"; exit 1; }
}
for tree in old new; do  # what is compiled once, and the file cache
    study $tree --only classification_digits/ce/seed0 --trainer.max_epochs 1
done
for round in $(seq "$rounds"); do
    for tree in old new; do
        begun=$(date +%s.%N) before=$(busy)
        study $tree
        echo "$round $tree $(date +%s.%N) $begun $(busy) $before" |
            awk '{printf "round %d %s: wall %.1f s, processor of the machine %.1f s\n", $1, $2, $3 - $4, $5 - $6}' | tee -a "$work/rows"
    done
done
awk '{wall[$3] += $5; cpu[$3] += $11} END {printf "new to old: wall %.3f, processor %.3f\n", wall["new:"] / wall["old:"], cpu["new:"] / cpu["old:"]}' "$work/rows"
