#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster; resumes after preemption and at the time limit.
#
#   launch/slurm.sh [--nodes=1] [--gpus=8] [--dry-run] [SBATCH OPTIONS] -- --config=FILE --workdir=DIR
#
# --gpus is for one node; behind -- stand the flags of mmsr_jax.main. Other options, as --time=8:00:00,
# --partition=NAME or --account=NAME, go to sbatch. The job has the environment of this shell, so
# activate the virtual environment before; it, the data and the workdir must be on a file system that
# all nodes share. The log is mmsr-jax-JOB.log. scancel ends the training for good; submitted again,
# it goes on.
#
# There is one task a GPU, because JAX gives every task of Slurm the one GPU of its number on the
# node: with one task a node the other GPUs would idle, and with --gpus-per-task, which hides the
# others' GPUs, the second task would find none of its number.
set -euo pipefail

dry_run=false

submit() {
  local nodes=1 gpus=8 options=()
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      --nodes=*) nodes=${1#*=} ;;
      --gpus=*) gpus=${1#*=} ;;
      --dry-run) dry_run=true ;;
      -*) options+=("$1") ;;
      *) fail "unexpected argument '$1'; write options of sbatch as --name=value" ;;
    esac
    shift
  done
  (($# > 1)) || fail "no flags of mmsr_jax.main; write them after --, as in -- --config=FILE"
  shift
  # Two minutes before the time limit the tasks, not this script, get the signal.
  run sbatch --job-name=mmsr-jax --nodes="$nodes" --ntasks-per-node="$gpus" \
    --gpus-per-node="$gpus" --cpus-per-task=8 --requeue --signal=TERM@120 --open-mode=append \
    --output=%x-%j.log ${options[@]+"${options[@]}"} "$0" in-job "$@"
  if $dry_run; then
    train "$@"
  fi
}

# The step of the job. Its status 143 says that all tasks have saved the same step.
train() {
  local status=0
  # A task that fails must not take the others with it before they have said why.
  run srun --kill-on-bad-exit=0 python -m mmsr_jax.main "$@" || status=$?
  if ((status == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}

# Runs a command, or prints it so that it can be pasted.
run() {
  local word line="" quote="'\\''"
  if ! $dry_run; then
    "$@"
    return
  fi
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    line+="$word "
  done
  echo "${line% }"
}

fail() {
  echo "error: $1" >&2
  exit 1
}

if [[ ${1-} == in-job ]]; then
  shift
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it from the job
  train "$@"
else
  submit "$@"
fi
