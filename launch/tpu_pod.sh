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

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; exit 0; }
fail() { echo "error: $* See launch/tpu_pod.sh --help" >&2; exit 2; }

dry_run=false action='' name='' zone='' type='' runtime=v2-alpha-tpuv5-lite spot=false
extras=data from='' to=. most=10 poll=${TPV_POLL_SECONDS:-30}
while (($#)); do
  case $1 in
    create | install | run | watch | fetch | clean | keep)
      [[ -z $action ]] || fail "One action at a time: $action or $1."
      action=$1
      ;;
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
    --help) usage ;;
    --)
      shift
      break
      ;;
    *) fail "${1@Q} is no action or option here; the command stands behind --." ;;
  esac
  shift
done
[[ -n $action ]] || fail "An action is due, such as create."
# What gcloud or a worker's shell is given is a name, a number or a path, never an option.
word='^[A-Za-z0-9][A-Za-z0-9._-]*$'
[[ $name =~ $word ]] || fail "--name=NAME is due, not ${name@Q}."
[[ $zone =~ $word ]] || fail "--zone=ZONE is due, not ${zone@Q}."
[[ $type =~ $word ]] || [[ -z $type && $action != @(create|keep) ]] ||
  fail "--type=TYPE is due, such as v5litepod-16, not ${type@Q}."
[[ $runtime =~ $word ]] || fail "--runtime=${runtime@Q} is no name."
[[ $extras =~ ^[a-z0-9]+(,[a-z0-9]+)*$ ]] || fail "--extras=${extras@Q}: write data,gcs."
[[ $most =~ ^[1-9][0-9]{0,3}$ ]] || fail "--most=${most@Q} is no number of times."
[[ $poll =~ ^[0-9]+$ ]] || fail "TPV_POLL_SECONDS=${poll@Q} is no number of seconds."
case $action in
  run | keep)
    first=${1:-}
    [[ -n $first && $first != -* ]] || fail "A command is due behind --, not ${first@Q}."
    ;;
  *) (($# == 0)) || fail "$action takes no command, and ${1@Q} stands behind --." ;;
esac
if [[ $action == fetch ]]; then
  [[ -n $from && $from != -* ]] || fail "--from=PATH is due, not ${from@Q}."
  # gcloud takes what has a colon before its first slash for a path of another machine.
  [[ -n $to && $to != -* && ${to%%/*} != *:* ]] ||
    fail "--to=PATH is due, not ${to@Q}; ./ in front makes any name a path."
fi
scratch=''
trap '[[ -z $scratch ]] || rm -rf -- "$scratch"' EXIT
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

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

# NONE where there is no request; UNKNOWN where gcloud could not ask.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" \
    '--format=value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

# keep runs these as a condition, where `set -e` does not hold: each step says what follows.
create() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  $spot && options+=(--spot)
  tpu queued-resources create "$name" "${options[@]}" || return
  $dry_run && return
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | NONE)
        echo "the request for $name is $now; see: gcloud compute tpus queued-resources" \
          "describe $name --zone=$zone" >&2
        return 1
        ;;
    esac
    echo "waiting for $name: $now"
    sleep "$poll"
  done
}

install() {
  local bundle=${TMPDIR:-/tmp}/tpv_jax.tar.gz
  if ! $dry_run; then
    [[ -n $scratch ]] || scratch=$(mktemp -d) || return
    bundle=$(CDPATH='' cd -- "$scratch" && pwd)/tpv_jax.tar.gz
    [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
      echo "note: what is not committed is not copied" >&2
  fi
  do_it git -C "$root" archive --format=tar.gz "--output=$bundle" HEAD &&
    tpu tpu-vm scp "$bundle" "$name:tpv_jax.tar.gz" --worker=all &&
    on_workers all "mkdir -p tpv_jax && tar -xzf tpv_jax.tar.gz -C tpv_jax && \
cd tpv_jax && python3 -m pip install --quiet 'jax[tpu]' -e '.[$extras]'"
}

run() {
  on_workers all "cd tpv_jax && { $(printf '%q ' "$@"); } 2>&1 | tee run.log; \
exit \${PIPESTATUS[0]}"
}

clean() { tpu queued-resources delete "$name" --force --quiet; }

keep() {
  local attempt now
  for ((attempt = 1; attempt <= most; attempt++)); do
    if create && install && run "$@"; then
      return 0
    fi
    $dry_run && return 0
    now=$(state)
    case $now in
      NONE | FAILED | SUSPENDING | SUSPENDED | DELETING) ;;
      *)
        echo "a step failed (above), and $name is $now: the slice is still there;" \
          "not trying again" >&2
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
  fetch) tpu tpu-vm scp --recurse "$name:$from" "$to" --worker=0 ;;
esac
