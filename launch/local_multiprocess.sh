#!/usr/bin/env bash
# Runs one command in several processes on this machine, joined by jax.distributed.
#
#   launch/local_multiprocess.sh [--dry-run] [--port=PORT] COUNT COMMAND...
#   launch/local_multiprocess.sh 2 python -m tpv_jax.train \
#     --gin_file=gin_configs/runs/embedded.gin \
#     --gin.TASK_NAME="'topic'" --gin.RUN_DIR="'runs/topic'"
#
# Each line of output starts with its process's number. When one process fails, the
# others are ended, and its exit code is the script's.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 2; }

dry_run=false
port=12321
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry_run=true ;;
    --port=*) port=${1#*=} ;;
    *) usage ;;
  esac
  shift
done
[[ ${1:-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || usage
count=$1
shift

process_flags() {
  echo "--multiprocess_gpu" "--coordinator_address=localhost:$port" \
    "--process_count=$count" "--process_index=$1"
}

pids=()
# shellcheck disable=SC2317  # Called by the trap.
end_all() { kill "${pids[@]}" 2>/dev/null || true; }
trap end_all EXIT INT TERM
for ((index = 0; index < count; index++)); do
  read -ra flags <<<"$(process_flags "$index")"
  if $dry_run; then
    printf '%q ' "$@" "${flags[@]}"
    echo '&'
  else
    "$@" "${flags[@]}" > >(sed -u "s/^/[$index] /") 2>&1 &
    pids+=($!)
  fi
done
$dry_run && exit 0
for ((left = count; left > 0; left--)); do
  code=0
  wait -n || code=$?
  if ((code != 0)); then
    echo "a process ended with exit code $code; ending the others" >&2
    exit "$code"
  fi
done
