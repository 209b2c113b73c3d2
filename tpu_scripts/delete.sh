#!/usr/bin/env bash
# Deletes the slice and all that was made for it; what is gone already is no failure.
USAGE='delete.sh --road=queued|instances --project=P --zone=Z --name=N'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"

road_delete
say "$NAME is deleted"
