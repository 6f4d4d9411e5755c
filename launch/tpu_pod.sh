#!/usr/bin/env bash
# Trains on a slice of a Cloud TPU pod, with checkpoints in a bucket.
#
#   launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE --bucket=gs://BUCKET [--dry-run] ...
#
#   create [--type=v5litepod-16] [--spot]   queue a request for the slice
#   install                                 this repository and the dataset, on every worker
#   train -- --config=FILE ...              start or resume training on every worker
#   status                                  of the slice and of every worker; the end of the log
#   fetch                                   checkpoints and logs to runs/NAME
#   delete                                  the slice, which costs until then; the bucket stays
#   watch [--type=...] [--spot] -- --config=FILE ...
#       all of these: creates the slice, again after a preemption, installs, trains to the end,
#       fetches and deletes. It looks every minute (--every=60) and can be stopped and started again.
#
# The dataset is gs://BUCKET/dataset (gcloud storage rsync -r dataset gs://BUCKET/dataset), the
# checkpoints are gs://BUCKET/runs/NAME/checkpoints. The slice's service account must be allowed to
# write there. Project and account are those of gcloud. Training goes on when ssh breaks off.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
name="" zone="" bucket="" type=v5litepod-16 spot=() every=60
archive=${TMPDIR:-/tmp}/mmsr-jax.$$.tar.gz
trap 'rm -f "$archive"' EXIT
most_failures=3

main() {
  local command=${1-}
  case $command in
    create | install | train | status | fetch | delete | watch) shift ;;
    *) fail "'$command' is none of create, install, train, status, fetch, delete, watch" ;;
  esac
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --bucket=gs://*) bucket=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --every=*) every=${1#*=} ;;
      --spot) spot=(--spot) ;;
      --dry-run) dry_run=true ;;
      --) shift && break ;;
      *) fail "unexpected argument '$1'; flags of mmsr_jax.main stand behind --" ;;
    esac
    shift
  done
  [[ $name =~ ^[a-z][-a-z0-9]*$ ]] ||
    fail "--name=$name is no name of a slice and run; try --name=lungs"
  [[ -n $zone ]] || fail "--zone is missing; try --zone=us-west4-a"
  [[ -n $bucket || ! $command =~ install|train|fetch|watch ]] ||
    fail "--bucket is missing; try --bucket=gs://BUCKET"
  (($#)) || [[ ! $command =~ train|watch ]] ||
    fail "no flags of mmsr_jax.main; write them behind --, as in -- --config=FILE"
  "$command" "$@"
}

create() {
  local runtime
  case $type in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) fail "--type=$type is none of v4-N, v5litepod-N, v5p-N, v6e-N" ;;
  esac
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
}

# The images have Python 3.10, so uv brings its own.
install() {
  pack &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:mmsr-jax.tar.gz" --zone="$zone" \
      --worker=all &&
    on_workers all "mkdir -p mmsr-jax && tar -xzf mmsr-jax.tar.gz -C mmsr-jax && cd mmsr-jax &&
python3 -m pip install --user --quiet uv && python3 -m uv venv --quiet --allow-existing --python 3.11 &&
python3 -m uv pip install --quiet -e '.[tpu,buckets]' -c constraints.txt &&
gcloud storage rsync --recursive $bucket/dataset dataset"
}

# The tracked files as they are now; watch installs the same ones every time.
pack() {
  local tree
  tree=$(git stash create) # empty if nothing is changed
  [[ -e $archive ]] || run git archive --format=tar.gz --output="$archive" "${tree:-HEAD}"
}

# The lock says whether training runs. Who ends because another worker failed has two minutes.
train() {
  on_workers all "cd mmsr-jax && cat > train.sh <<'END'
rm -f train.status
.venv/bin/python -m mmsr_jax.main $(quoted "$@") --config.data.directory=dataset \\
  --workdir=runs/$name --checkpoints=$bucket/runs/$name/checkpoints >> train.log 2>&1
echo \$? > train.status
END
nohup setsid flock --wait 120 train.lock bash train.sh < /dev/null > /dev/null 2>&1 &"
}

status() {
  slices
  on_workers all "echo \"\$(hostname): \$($outcome)\""
  on_workers 0 "tail -n 20 mmsr-jax/train.log"
}

fetch() {
  local folder=runs/$name
  run mkdir -p "$folder/checkpoints"
  run gcloud storage rsync --recursive "$bucket/$folder/checkpoints" "$folder/checkpoints"
  {
    run gcloud compute tpus tpu-vm scp --recurse "$name:mmsr-jax/$folder" runs --zone="$zone" \
      --worker=0 &&
      run gcloud compute tpus tpu-vm scp "$name:mmsr-jax/train.log" "$folder" --zone="$zone" \
        --worker=0
  } || say "the logs on the slice were not fetched; those of the bucket are in $folder/checkpoints"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
}

watch() {
  local found="" failures=0
  if $dry_run; then
    create && install && train "$@" && slices && on_workers 0 "$outcome" && fetch && delete
    return
  fi
  pack
  while [[ $found != 0 ]] && ((failures < most_failures)); do
    found=$(state)
    say "$found"
    case $found in
      0) break ;;
      absent) create ;;
      SUSPENDED | PREEMPTED | TERMINATED) delete && create ;;
      FAILED) fail "the request failed; gcloud compute tpus queued-resources describe says why" ;;
      new) install && train "$@" ;;
      stopped | 143) train "$@" ;;
      [0-9]*)
        failures=$((failures + 1))
        ((failures == most_failures)) || train "$@"
        ;;
    esac || failures=$((failures + 1))
    sleep "$every"
  done
  fetch
  delete
  [[ $found == 0 ]] || fail "gave up after $failures failures; see runs/$name/train.log"
}

# One word: of the training on worker 0 if the slice is there, else of the slice.
state() {
  local found request node
  found=$(slices | awk -v name="$name" '$1 == name {printf "%s ", $2}') || found=unknown
  read -r request node <<< "$found"
  case $request:$node in
    :*) echo absent ;;
    ACTIVE:READY) on_workers 0 "$outcome" || echo unreachable ;;
    ACTIVE:?*) echo "$node" ;; # preempted, before the request knows
    *) echo "$request" ;;
  esac
}

outcome='if [ ! -e mmsr-jax/train.sh ]; then echo new
elif ! flock --nonblock mmsr-jax/train.lock true; then echo running
else cat mmsr-jax/train.status 2> /dev/null || echo stopped; fi'

# Name and state of every request in the zone, and of every node.
slices() {
  run gcloud compute tpus queued-resources list --zone="$zone" \
    --format='value(name.basename(),state.state)' &&
    run gcloud compute tpus tpu-vm list --zone="$zone" --format='value(name.basename(),state)'
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

# Runs a command, or prints it so that it can be pasted.
run() {
  if $dry_run; then
    quoted "$@"
  else
    "$@"
  fi
}

quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    line+="$word "
  done
  echo "${line% }"
}

say() {
  echo "$(date +%H:%M:%S) $name: $1" >&2
}

fail() {
  echo "error: $1" >&2
  exit 1
}

main "$@"
