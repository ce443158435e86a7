#!/usr/bin/env bash
# Cloud TPU pod slices from creation to clean-up, by queued resources.
#
#   launch/tpu_pod.sh [--dry-run] ACTION --name=NAME --zone=ZONE [options] [-- COMMAND...]
#
# Actions:
#   create   ask for the slice and wait until it is there  (--type=v5litepod-16,
#            --runtime=v2-alpha-tpuv5-lite, --spot)
#   install  copy this repository to all workers and install it  (--extras=data)
#   run      run COMMAND on all workers, its output here and in ~/tpv_jax/run.log
#   watch    follow the log of worker 0
#   fetch    copy a folder of worker 0 here  (--from=PATH --to=PATH); gs:// needs none
#   clean    delete the slice and its request
#   keep     create, install and run; when a spot slice is taken away, do it again until
#            COMMAND ends with 0. Jobs continue from their newest checkpoint, which must
#            outlive the slice: T5X's MODEL_DIR or RUN_DIR on gs:// (--extras=data,gcs), or
#            on a file system that all workers share  (--most=10 times)
#
#   launch/tpu_pod.sh keep --name=tpv --zone=us-west4-a --type=v5litepod-16 --spot -- \
#     python3 -m t5x.train --gin_file=tpv_jax/gin_configs/t5x/train.gin ...
#
# NEVER RUN ON A TPU SO FAR: tested by its dry run and against a stub of gcloud.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 2; }

dry_run=false name='' zone='' type='' runtime=v2-alpha-tpuv5-lite spot=false extras=data
from='' to=. most=10 poll=${TPV_POLL_SECONDS:-30}
[[ ${1:-} == --dry-run ]] && { dry_run=true; shift; }
action=${1:-}
shift || usage
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --extras=*) extras=${1#*=} ;;
    --from=*) from=${1#*=} ;;
    --to=*) to=${1#*=} ;;
    --most=*) most=${1#*=} ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) usage ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || usage
root=$(cd "$(dirname "$0")/.." && pwd)

do_it() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() { do_it gcloud compute tpus "$@" "--zone=$zone"; }

on_workers() { tpu tpu-vm ssh "$name" "--worker=$1" "--command=$2"; }

state() {
  gcloud compute tpus queued-resources describe "$name" "--zone=$zone" \
    '--format=value(state.state)' 2>/dev/null || echo NONE
}

create() {
  [[ -n $type ]] || { echo "create needs --type, such as v5litepod-16" >&2; exit 2; }
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  $spot && options+=(--spot)
  tpu queued-resources create "$name" "${options[@]}"
  $dry_run && return
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | NONE)
        echo "the request for $name is $now; see 'gcloud compute tpus queued-resources'" >&2
        return 1
        ;;
    esac
    echo "waiting for $name: $now"
    sleep "$poll"
  done
}

install() {
  local bundle
  bundle=$(mktemp -d)/tpv_jax.tar.gz
  do_it git -C "$root" archive --format=tar.gz "--output=$bundle" HEAD
  tpu tpu-vm scp "$bundle" "$name:tpv_jax.tar.gz" --worker=all
  on_workers all "mkdir -p tpv_jax && tar -xzf tpv_jax.tar.gz -C tpv_jax && cd tpv_jax && \
python3 -m pip install --quiet 'jax[tpu]' -e '.[$extras]'"
}

run() {
  (($#)) || { echo "run needs a command behind --" >&2; exit 2; }
  on_workers all "cd tpv_jax && { $(printf '%q ' "$@"); } 2>&1 | tee run.log; \
exit \${PIPESTATUS[0]}"
}

clean() { tpu queued-resources delete "$name" --force --quiet; }

keep() {
  local attempt
  for ((attempt = 1; attempt <= most; attempt++)); do
    if create && install && run "$@"; then
      return 0
    fi
    $dry_run && return 0
    case $(state) in
      ACTIVE)
        echo "the command failed and the slice is still there; not trying again" >&2
        return 1
        ;;
    esac
    echo "attempt $attempt of $most ended with the slice; asking for another" >&2
    clean || true
  done
  echo "gave up after $most attempts" >&2
  return 1
}

case $action in
  create | install | clean) "$action" ;;
  run | keep) "$action" "$@" ;;
  watch) on_workers 0 'tail -n 50 -f tpv_jax/run.log' ;;
  fetch)
    [[ -n $from ]] || { echo "fetch needs --from=PATH" >&2; exit 2; }
    tpu tpu-vm scp --recurse "$name:$from" "$to" --worker=0
    ;;
  *) usage ;;
esac
