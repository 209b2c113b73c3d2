#!/usr/bin/env bash
# Runs a command until it is done. A slice that is taken, or not there, is deleted, made again and set up, and the
# command started again: it goes on from its work directory, which has to be on gs://. A command that ends with 75 on a
# slice that stays is started again too. Any other failure ends the watch.
USAGE='watch.sh, the arguments of create.sh, --wheel=FILE.whl, and -- COMMAND...'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"
need provisioning "${ROAD_NEEDS[@]}" wheel
((${#COMMAND[@]})) || usage "a command is missing after --"

# Whether the slice is gone; the news may come after its hosts have fallen silent.
taken() {
  local look state
  for ((look = 0; look < ${TPU_LOOKS:-6}; look++)); do
    state=$(road_state)
    say "$NAME is $state"
    [[ $state =~ ^(ACTIVE|UNKNOWN)$ ]] || return 0
    sleep "$POLL"
  done
  return 1
}

try() { "$HERE/$1.sh" "${@:2}" & wait $!; }
trap 'set +e; kill $!; wait $!; exit 130' INT TERM HUP

step=run
for ((round = 1; round <= ${TPU_ROUNDS:-100}; round++)); do
  code=0
  try "$step" "$@" || code=$?
  [[ $step$code != run0 ]] || exit 0
  if [[ $step$code == setup0 ]]; then
    step=run
  elif taken; then
    try delete "$@" && try create "$@" || exit 1
    step=setup
  elif [[ $step$code != run75 ]]; then
    say "$step.sh ended with exit code $code" && exit "$code"
  fi
done
fail "not done in ${TPU_ROUNDS:-100} rounds; TPU_ROUNDS sets their number"
