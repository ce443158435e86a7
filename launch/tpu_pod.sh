#!/usr/bin/env bash
# Cloud TPU pods from creation to deletion: launch/tpu_pod.sh --help
#
# In Python, so that a command's blanks and quotes, the workers' answers and what follows
# from a state are data rather than text that a shell expands again.
exec python3 "$(dirname -- "$0")/tpu_pod.py" "$@"
