#!/usr/bin/env bash
# Runs one command in several processes on this machine, joined by jax.distributed.
#
#   launch/local_multiprocess.sh [--dry-run] [--port=PORT] COUNT COMMAND...
#   launch/local_multiprocess.sh 2 tpv train \
#     --gin_file=gin_configs/runs/embedded.gin \
#     --gin.TASK_NAME=topic --gin.RUN_DIR=runs/topic
#
# For T5X use tpv_jax.t5x.train, eval and infer (docs/t5x.md).
#
# Each line of output starts with the number of its process. If a process fails or the
# script is ended, the other processes get SIGTERM, and SIGKILL if they are still running
# after 60 s. The exit code is that of the failed process.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 0; }
fail() { echo "error: $* See launch/local_multiprocess.sh --help" >&2; exit 2; }

dry_run=false port=12321 grace=${TPV_GRACE_SECONDS:-60}
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) dry_run=true ;;
    --port=*) port=${1#*=} ;;
    --help) usage ;;
    *) fail "There is no option ${1@Q}." ;;
  esac
  shift
done
[[ $port =~ ^[1-9][0-9]{0,4}$ && $port -lt 65536 ]] || fail "--port=${port@Q} is not a port."
[[ $grace =~ ^[0-9]+$ ]] || fail "TPV_GRACE_SECONDS=${grace@Q} is not a number of seconds."
(($#)) || fail "Give the number of processes."
[[ $1 =~ ^[1-9][0-9]{0,3}$ ]] || fail "${1@Q} is not a number of processes."
count=$1
shift
first=${1:-}
[[ -n $first && $first != -* ]] || fail "Give a command after $count, not ${first@Q}."
for word in "$@"; do
  [[ $word != t5x.@(eval|infer) ]] ||
    fail "$word takes no flags of several processes: write python -m tpv_jax.$word."
done

# Each process leads a process group, so that its children end with it. What numbers its
# lines is outside the group, so that no line is lost when the group is ended.
set -m
groups=() readers=()
end_all() {
  trap - EXIT
  exec 2>/dev/null # Bash reports each process that a signal ended.
  kill -- "${groups[@]}" || true
  local deadline=$((SECONDS + grace))
  while kill -0 -- "${groups[@]}" "${readers[@]}" && ((SECONDS < deadline)); do
    sleep 0.1
  done
  kill -KILL -- "${groups[@]}" "${readers[@]}" || true
  wait
}
trap end_all EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
for ((index = 0; index < count; index++)); do
  flags=(--multiprocess_gpu "--coordinator_address=localhost:$port"
    "--process_count=$count" "--process_index=$index")
  if $dry_run; then
    printf '%q ' "$@" "${flags[@]}"
    echo '&'
    continue
  fi
  exec {lines}> >(trap '' HUP INT TERM && exec sed -u "s/^/[$index] /")
  readers+=("$!")
  "$@" "${flags[@]}" >&"$lines" 2>&1 {lines}>&- &
  groups+=("-$!")
  exec {lines}>&-
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
