#!/usr/bin/env bash
# A run on every worker of a Cloud TPU slice.
#
#     launch/tpu_pod.sh NAME ZONE --config=configs/severity.py:quick --workdir=/mnt/shared/DIR [flags]
#
# The checkout with its environment lies in CXR_HOME on every worker (default: cxr_jax in the home
# folder, environment in .venv), the work directory and the data on a disk that all of them mount,
# Filestore for one. DRY_RUN=1 prints the command. Install once:
#
#     gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL cxr_jax &&
#       cd cxr_jax && python3 -m venv .venv && .venv/bin/pip install -e ".[tpu]"'
set -euo pipefail

if [[ $# -lt 3 || "$1" == --help ]]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0"
  [[ "${1:-}" == --help ]] && exit 0
  exit 2
fi
name=$1
zone=$2
if [[ "$name" == -* || "$zone" == -* ]]; then
  echo "error: $name $zone: give the TPU's NAME and ZONE before the flags" >&2
  exit 2
fi
shift 2

home="${CXR_HOME:-cxr_jax}"
flags=$(printf '%q ' "$@")
worker="cd $(printf '%q' "$home") && .venv/bin/python -m cxr_jax.main ${flags}--hosts=tpu"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$worker")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
