#!/usr/bin/env bash
# launch/tpu_worker.sh is what launch/tpu_pod.sh runs on each worker: one job at a time, which
# outlives the connection.
#
#   start JOB COMMAND...   starts COMMAND, unless a job runs or JOB was started
#   status                 tells of the newest job
#   stop                   sends it SIGTERM, and SIGKILL after 60 s
#   install BUNDLE EXTRAS  unpacks and installs the repository; is itself run as a job
#
# The first three print a line: tpv-worker HOST JOB STATE CODE. STATE is none, running, exit,
# terminated (ended after a SIGTERM of the machine's own), stopped (by `stop`) or vanished
# (no process and no exit code: it was killed, or the machine started anew).
#
# A job runs in ~/tpv_jax, with ~/tpv_pod/env in front of PATH. ~/tpv_pod has its log, its
# status ("JOB STATE CODE PID") and a lock, which the job's processes hold while they live:
# a command whose connection broke is repeated by gcloud, and a job must not start twice.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; }
fail() { echo "error: $* See launch/tpu_worker.sh --help" >&2; exit 2; }

self=$(realpath -- "$0")
pod=$HOME/tpv_pod

put_status() {
  echo "$*" >"$pod/status.new"
  mv -- "$pod/status.new" "$pod/status"
}

# What holds the lock for longer than a moment is a job.
is_free() { flock --shared --wait "$1" "$pod/lock" true; }

report() {
  local job=- state=none code=0
  [[ ! -e $pod/status ]] || read -r job state code _ <"$pod/status"
  if [[ $state == running ]] && is_free 0; then
    read -r job state code _ <"$pod/status" # It may have ended since the first look.
    [[ $state != running ]] || state=vanished
  fi
  [[ $state == running || ! -e $pod/stopped ]] || state=stopped
  echo "tpv-worker $HOSTNAME $job $state $code"
}

start() {
  local job=$1 last=''
  shift
  mkdir -p "$pod" "$HOME/tpv_jax"
  exec 9>"$pod/lock"
  if flock --wait 1 9; then
    [[ ! -e $pod/status ]] || read -r last _ <"$pod/status"
    if [[ $last != "$job" ]]; then
      rm -f -- "$pod/stopped"
      setsid --fork bash "$self" job "$job" "$@" </dev/null >>"$pod/log" 2>&1
      for ((tenth = 0; tenth < 100; tenth++)); do
        [[ ! -e $pod/status ]] || read -r last _ <"$pod/status"
        [[ $last != "$job" ]] || break
        sleep 0.1
      done
    fi
  fi
  exec 9>&-
  report
}

# Runs as the leader of a session of its own, and holds the lock that `start` took.
job() {
  local job=$1 state=exit code=0
  shift
  put_status "$job running 0 $$"
  echo "== $(date --iso-8601=seconds) $job: ${*@Q}"
  trap 'state=terminated' TERM # Who sends it to this process sends it to all of the job.
  trap '' HUP
  cd "$HOME/tpv_jax"
  env PATH="$pod/env/bin:$PATH" PYTHONUNBUFFERED=1 "$@" || code=$?
  echo "== $(date --iso-8601=seconds) $job: $state $code"
  put_status "$job $state $code $$"
}

stop() {
  local leader
  mkdir -p "$pod"
  if ! is_free 0; then
    touch "$pod/stopped"
    read -r _ _ _ leader <"$pod/status"
    kill -TERM -- "-$leader" || true
    if ! is_free "${TPV_GRACE_SECONDS:-60}"; then
      kill -KILL -- "-$leader" || true
      is_free 10
    fi
  fi
  report
}

install() {
  local bundle=$HOME/$1 extras=$2 python=$pod/env/bin/python digest
  digest=${1#tpv_jax-}
  [[ $(sha256sum <"$bundle") == "${digest%.tar.gz}"* ]] || fail "$bundle is damaged."
  # Files of the copy before go, so that none of an older version is left; what jobs wrote
  # stays.
  [[ ! -e $pod/files ]] || (cd "$HOME/tpv_jax" && xargs -0 rm -f -- <"$pod/files")
  tar -tzf "$bundle" | tr '\n' '\0' >"$pod/files"
  tar -xzf "$bundle" -C "$HOME/tpv_jax"
  find "$HOME" -maxdepth 1 -name 'tpv_jax-*.tar.gz' ! -path "$bundle" -delete
  cd "$HOME/tpv_jax"
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf -- "$pod/env"
    if python3.12 -c 'import ensurepip' 2>/dev/null; then
      python3.12 -m venv "$pod/env"
    else
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.12 "$pod/env"
    fi
  fi
  "$python" -m pip install --quiet 'jax[tpu]' -e ".[$extras]"
  "$python" -m pip install --quiet --no-deps -r requirements-t5x.txt
}

# All of this file is read before a line of it runs: a copy of it may come meanwhile.
main() {
  local verb=${1:-}
  (($# == 0)) || shift
  case $verb in
    start) start "$@" ;;
    job) job "$@" ;;
    status) report ;;
    stop) stop ;;
    install) install "$@" ;;
    --help) usage ;;
    *) fail "${verb@Q} is no action here." ;;
  esac
  exit
}
main "$@"
