# shellcheck shell=bash
# One function on every host of the slice at once.

# A dead connection ends ssh within two minutes: the machine of a preempted host says no goodbye.
SSH_FLAGS=(--ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30)
# Internal addresses are reached from within their network, or through IAP.
REACH=(${INTERNAL_IPS:+--internal-ip})
[[ -z $TUNNEL_THROUGH_IAP ]] || REACH=(--tunnel-through-iap)

# Calls FUNCTION HOST ARGUMENTS...; each line that it prints stands under the host's name.
on_one() {
  local code=0
  "$@" </dev/null 2>&1 | sed -u "s/^/[$2] /" || code=$?
  case $code in
    0) ;;
    255) say "host $2 is not reached, or lost (exit code 255)" ;;
    *) say "host $2 ended with exit code $code" ;;
  esac
  return "$code"
}

# Calls FUNCTION ARGUMENTS... so for all hosts. Returns the worst exit code: a fault counts more than 75 (told to stop,
# and has saved), a lost host (255) more than all.
on_all() {
  local names host child code worst=0 children=()
  names=$(road_hosts) || names=
  [[ -n $names ]] || { say "$NAME has no hosts" && return 255; }
  set -m # each host's processes are one group, which ends when this script is told to
  trap 'kill -- "${children[@]/#/-}"; exit 130' INT TERM HUP
  for host in $names; do
    on_one "$1" "$host" "${@:2}" &
    children+=($!)
  done
  for child in "${children[@]}"; do
    code=0
    wait "$child" || code=$?
    if ((code && (worst == 0 || worst == 75 || (code != 75 && code > worst)))); then worst=$code; fi
  done
  return "$worst"
}
