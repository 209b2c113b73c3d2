#!/usr/bin/env bash
# Runs one command on every host of the slice, each line of output under its host's name. The exit code is the worst
# host's: 75 where jaxalign was told to stop and has saved, 255 where a host is not reached or lost.
USAGE='run.sh --road=queued|instances --project=P --zone=Z --name=N -- COMMAND...'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"
((${#COMMAND[@]})) || usage "a command is missing after --"

# gcloud connects again where a connection breaks; the folder lets nothing start twice on a host.
once=".jaxalign-run-$(date +%s)-$$"
# With one host there is nobody to join, and jax would look in vain.
joined=
[[ $(road_hosts | wc -l) -le 1 ]] || joined='export JAXALIGN_DISTRIBUTED=1; '
on_all road_ssh "mkdir $once || exit 255; . ~/jaxalign-env/bin/activate; ${joined}exec env$(printf ' %q' "${COMMAND[@]}")"
