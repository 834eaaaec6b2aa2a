#!/usr/bin/env bash
# One machine with one GPU or several: one process that takes them all.
#
#     launch/gpu_single.sh --config=configs/severity.py:quick --workdir=DIR [any flag of cxr_jax.main]
#
# DRY_RUN=1 prints the command. RETRIES=3 starts it again so often where it dies of anything but a
# mistake in its flags or data: the same command resumes from the last checkpoint.
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$0"
}
if [[ $# -eq 0 || "$1" == --help ]]; then
  usage
  exit 0
fi

python="${PYTHON:-python}"
command=("$python" -m cxr_jax.main "$@")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus; then
  echo "error: this machine shows no GPU (nvidia-smi); python -m cxr_jax.main runs without one" >&2
  exit 2
fi

child=""
stopped=""
stop() {
  stopped=yes
  [[ -z "$child" ]] || kill -TERM "$child"
}
trap stop TERM INT
for ((try = 0; ; try++)); do
  "${command[@]}" &
  child=$!
  status=0
  wait "$child" || status=$?
  # A signal ends the first `wait` at once, and the run saves before it ends.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && status=0 || status=$?; done
  # 2 is a mistake in what was given: it would be the same again.
  if [[ $status -eq 0 || $status -eq 2 || -n "$stopped" || $try -ge ${RETRIES:-0} ]]; then
    exit "$status"
  fi
  echo "ended with status $status; try $((try + 1)) of ${RETRIES:-0}" >&2
  sleep 10
done
