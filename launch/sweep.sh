#!/usr/bin/env bash
# Variants and seeds as array jobs of a Slurm cluster, one GPU each, and one table at the end.
#
#     launch/sweep.sh --list=configs/sweeps/NAME.toml --output=SHARED/DIR [flags of cxr_jax.sweep]
#
# A run that begins with another one's weights is in a later wave, which waits for the one before.
# What is finished is left out, so the same command goes on with a sweep. SBATCH='sbatch
# --gpus=1 --time=4:00:00' in place of the options below. DRY_RUN=1 prints the commands. On one machine, without a cluster:
# python -m cxr_jax.sweep with --jobs=N.
set -euo pipefail

if [[ $# -eq 0 || "$1" == --help ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 0
fi
python="${PYTHON:-python}"
read -r -a sbatch <<<"${SBATCH:-sbatch --gpus=1 --cpus-per-task=8 --time=12:00:00}"

submit() {  # prints the number of the job
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@" >&2
    echo >&2
    echo "JOB$((jobs + 1))"
  else
    "$@"
  fi
}

jobs=0
before=()
waves=$("$python" -m cxr_jax.sweep "$@" --waves)
task=$(printf '%q ' "$python" -m cxr_jax.sweep "$@")
for wave in $waves; do
  job=$(submit "${sbatch[@]}" --parsable --job-name=cxr_sweep --array="$wave" "${before[@]}" \
    --wrap="$task --run=\$SLURM_ARRAY_TASK_ID")
  before=("--dependency=afterany:${job%%;*}")
  jobs=$((jobs + 1))
done
submit "${sbatch[@]}" --parsable --job-name=cxr_table "${before[@]}" --wrap="$task" >/dev/null
