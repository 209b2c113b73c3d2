# shellcheck shell=bash
# The node's hosts, once it is there.

# Workers are numbered. Asked one by one: --worker=all tells neither whose exit code it returns nor the worst.
road_hosts() {
  local count
  count=$(node 'networkEndpoints.len()')
  [[ $count =~ ^[0-9]+$ ]] && seq 0 "$((count - 1))"
}

# The released commands do not tunnel.
TPU_VM=(${TUNNEL_THROUGH_IAP:+alpha} compute tpus tpu-vm)
TO_NODE=("${PLACE[@]}" "${REACH[@]}")
road_ssh() { gcloud "${TPU_VM[@]}" ssh "$NAME" "${TO_NODE[@]}" "--worker=$1" "${SSH_FLAGS[@]}" "--command=$2"; }
road_put() { gcloud "${TPU_VM[@]}" scp "$2" "$NAME:" "${TO_NODE[@]}" "--worker=$1"; }
road_get() { gcloud "${TPU_VM[@]}" scp --recurse "$NAME:$2" "$3" "${TO_NODE[@]}" "--worker=$1"; }
