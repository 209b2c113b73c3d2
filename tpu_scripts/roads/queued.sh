# shellcheck shell=bash
# The Cloud TPU API: v5e, and still v5p and v6e. A queued resource and its one node share the slice's name.

ROAD_NEEDS=(accelerator-type runtime-version)
PLACE=("--project=$PROJECT" "--zone=$ZONE" --quiet)

request() { ask compute tpus queued-resources describe "$NAME" "${PLACE[@]}" "--format=value($1)"; }
node() { ask compute tpus tpu-vm describe "$NAME" "${PLACE[@]}" "--format=value($1)"; }

road_exists() { [[ $(request name) != MISSING ]]; }

road_create() {
  local price=("--valid-until-duration=${WAIT}s") own=(${NETWORK:+"--network=$NETWORK"}
    ${SUBNETWORK:+"--subnetwork=$SUBNETWORK"} ${INTERNAL_IPS:+--internal-ips}
    ${SERVICE_ACCOUNT:+"--service-account=$SERVICE_ACCOUNT"} ${RESERVATION:+"--reservation=$RESERVATION"})
  [[ $PROVISIONING != spot ]] || price+=(--spot)
  [[ $PROVISIONING != reservation-bound ]] || price+=(--provisioning-model=reservation-bound)
  # The released command knows reservations, but not by their names.
  gcloud ${RESERVATION:+alpha} compute tpus queued-resources create "$NAME" "${PLACE[@]}" "--node-id=$NAME" \
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" "${price[@]}" "${own[@]}"
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

road_delete() { drop compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force; }

. "$HERE/roads/queued_hosts.sh"
