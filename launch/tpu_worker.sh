#!/usr/bin/env bash
# launch/tpu_worker.sh runs on each worker, for launch/tpu_pod.sh: one detached job at a time.
#
#   start JOB COMMAND...   starts COMMAND, unless a job is running or JOB was started before
#   status                 shows the newest job
#   stop                   sends it SIGTERM, and SIGKILL after 60 s
#   install BUNDLE EXTRAS  unpacks and installs the repository; run as a job itself
#
# The first three print a line: tpv-worker HOST JOB STATE CODE. STATE is none, running, exit,
# terminated (it ended, and something other than `stop` had sent SIGTERM), stopped, or
# vanished (no process and no exit code: killed, or the machine was restarted).
#
# A job runs in ~/tpv_jax with ~/tpv_pod/env first in PATH. ~/tpv_pod holds its log, its
# status ("JOB STATE CODE PID") and a lock, which the job's processes keep while they live.
# That makes `start` safe to repeat: gcloud repeats a command whose connection broke.
set -euo pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d'; }
fail() { echo "error: $* See launch/tpu_worker.sh --help" >&2; exit 2; }

self=$(realpath -- "$0")
pod=$HOME/tpv_pod

put_status() {
  echo "$*" >"$pod/status.new"
  mv -- "$pod/status.new" "$pod/status"
}

# Only a job holds the lock for longer than a moment.
is_free() { flock --shared --wait "$1" "$pod/lock" true; }

report() {
  local job=- state=none code=0
  [[ ! -e $pod/status ]] || read -r job state code _ <"$pod/status"
  if [[ $state == running ]] && is_free 0; then
    read -r job state code _ <"$pod/status" # It may have ended since the first read.
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

# Leads a session of its own, and keeps the lock that `start` took.
job() {
  local job=$1 state=exit code=0
  shift
  put_status "$job running 0 $$"
  echo "== $(date --iso-8601=seconds) $job: ${*@Q}"
  trap 'state=terminated' TERM # The sender signals the whole job.
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
  # The files of the last copy are removed first; what jobs wrote stays.
  [[ ! -e $pod/files ]] || (cd "$HOME/tpv_jax" && xargs -0 rm -f -- <"$pod/files")
  tar --quoting-style=literal -tzf "$bundle" | tr '\n' '\0' >"$pod/files"
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

# Within a function, so that a new copy of this file does not change what is running.
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
    *) fail "There is no action ${verb@Q}." ;;
  esac
  exit
}
main "$@"
