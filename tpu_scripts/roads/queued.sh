# shellcheck shell=bash
# The Cloud TPU API: v5e, and still v5p and v6e. A queued resource and its one node share the slice's name.

ROAD_NEEDS=(accelerator-type runtime-version)
WHERE=("--project=$PROJECT" "--zone=$ZONE" --quiet)

request() { ask compute tpus queued-resources describe "$NAME" "${WHERE[@]}" "--format=value($1)"; }
node() { ask compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" "--format=value($1)"; }

road_exists() { [[ $(request name) != MISSING ]]; }

road_create() {
  local price=("--valid-until-duration=${WAIT}s")
  [[ $PROVISIONING != spot ]] || price+=(--spot)
  gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" "--node-id=$NAME" \
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" "${price[@]}"
}

# ACTIVE when ready for use; the node tells of a preemption before the request does.
road_state() {
  local state
  state=$(request state.state)
  [[ $state != ACTIVE ]] || state=$(node state)
  echo "${state/#READY/ACTIVE}"
}

# Why a slice in the state FAILED will never be there.
road_refusal() { request state.failedData.error.message; }

road_delete() { drop compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force; }

# Workers are numbered. Asked one by one: --worker=all tells neither whose exit code it returns nor the worst.
road_hosts() {
  local count
  count=$(node 'networkEndpoints.len()')
  [[ $count =~ ^[0-9]+$ ]] && seq 0 "$((count - 1))"
}
road_ssh() { gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" "--worker=$1" "${SSH_FLAGS[@]}" "--command=$2"; }
road_put() { gcloud compute tpus tpu-vm scp "$2" "$NAME:" "${WHERE[@]}" "--worker=$1"; }
road_get() { gcloud compute tpus tpu-vm scp --recurse "$NAME:$2" "$3" "${WHERE[@]}" "--worker=$1"; }
