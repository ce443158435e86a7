#!/usr/bin/env bash
# Runs one command on SLURM's GPU nodes, with one process per node for all of its GPUs.
#
#   launch/slurm.sh [--dry-run] --nodes=N [--gpus=8] [--time=HH:MM:SS] [--partition=P] \
#     [--setup='source .venv/bin/activate'] -- COMMAND...
#   launch/slurm.sh --nodes=2 -- tpv train --gin_file=...
#
# Inside an allocation (salloc, sbatch) it runs there; otherwise it requests one with srun.
# JAX finds the other processes through SLURM's variables; RUN_DIR or MODEL_DIR must be on a
# file system that all nodes share. For T5X use tpv_jax.t5x.train, eval and infer
# (docs/t5x.md). If a node fails, the others are stopped. SIGTERM is sent 120 s before the
# time limit (inside an allocation only if it was requested with --signal=TERM@120), so that
# the run is saved; the same command resumes it.
#
# NEVER RUN ON SLURM SO FAR: tested by its dry run and against a stub of srun.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 0; }
fail() { echo "error: $* See launch/slurm.sh --help" >&2; exit 2; }

dry_run=false nodes='' gpus=8 limit='' partition='' setup=''
while (($#)); do
  case $1 in
    --dry-run) dry_run=true ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --time=*) limit=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --help) usage ;;
    --)
      shift
      break
      ;;
    *) fail "There is no option ${1@Q}; the command follows --." ;;
  esac
  shift
done
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "Give --nodes=N, not ${nodes@Q}."
[[ $gpus =~ ^([A-Za-z0-9_.]+:)?[1-9][0-9]*$ ]] || fail "--gpus=${gpus@Q} is not a number."
[[ $limit =~ ^([0-9]+([-:][0-9]+)*)?$ ]] || fail "--time=${limit@Q} is not HH:MM:SS."
[[ $partition =~ ^([A-Za-z0-9_][A-Za-z0-9_.,-]*)?$ ]] ||
  fail "--partition=${partition@Q} is not a name."
[[ $setup != -* ]] || fail "--setup=${setup@Q} is not a command."
first=${1:-}
[[ -n $first && $first != -* ]] || fail "Give a command after --, not ${first@Q}."
for word in "$@"; do
  [[ $word != t5x.@(eval|infer) ]] ||
    fail "$word takes no flags of several processes: write python -m tpv_jax.$word."
done

options=("--nodes=$nodes" --ntasks-per-node=1 "--gpus-per-node=$gpus" --kill-on-bad-exit=1
  --label --signal=TERM@120)
[[ -n $limit ]] && options+=("--time=$limit")
[[ -n $partition ]] && options+=("--partition=$partition")

# Under SLURM, JAX gives a process one GPU unless it is told which of the node's to use.
devices=$(seq -s, 0 $((${gpus##*:} - 1)))
inner="exec $(printf '%q ' "$@")--multiprocess_gpu"
[[ -n $setup ]] && inner="$setup && $inner"
inner="export JAX_LOCAL_DEVICE_IDS=$devices; $inner"
command=(srun "${options[@]}" bash -c "$inner")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
