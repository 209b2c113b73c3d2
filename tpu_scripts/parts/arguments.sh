# shellcheck shell=bash
# What every verb starts with: its arguments, its messages, and the road that they name.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
KEYS=(road project zone name provisioning accelerator-type runtime-version machine-type image-family image-project disk
  hosts topology wheel from to network subnetwork service-account reservation)
SWITCHES=(internal-ips tunnel-through-iap)

VERB=${0##*/}
say() { printf '%s: %s\n' "${VERB%.sh}" "$*" >&2; }
fail() { say "$1" && exit 1; }
usage() { say "$1" && printf 'usage: %s\n' "$USAGE" >&2 && exit 2; }

# Ends with the usage line where one of these was not given.
need() {
  local key variable
  for key; do
    variable=${key//-/_} variable=${variable^^}
    [[ -n ${!variable} ]] || usage "--$key is missing"
  done
}

# --key=value becomes $KEY, a --switch is no longer empty; what follows -- is the command. Then loads the road.
read_arguments() {
  local key at
  for key in "${KEYS[@]^^}" "${SWITCHES[@]^^}"; do printf -v "${key//-/_}" ''; done
  for ((at = 1; at <= $#; at++)); do
    [[ ${!at} != -- ]] || break
    key=${!at%%=*} key=${key#--}
    [[ " ${SWITCHES[*]/#/--} " == *" ${!at} "* || (${!at} == --?*=?* && " ${KEYS[*]} " == *" $key "*) ]] ||
      usage "not understood: ${!at}"
    key=${key^^} && printf -v "${key//-/_}" '%s' "${!at#*=}"
  done
  COMMAND=("${@:at+1}")
  need road project zone name
  [[ $ROAD =~ ^(queued|instances)$ ]] || usage "--road is queued or instances"
  # shellcheck source=/dev/null
  for part in parts/cloud parts/hosts "roads/$ROAD"; do . "$HERE/$part.sh"; done
}
