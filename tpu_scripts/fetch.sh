#!/usr/bin/env bash
# Copies results to this machine: a folder on gs://, or one on the hosts, each host's then in a folder of its name.
USAGE='fetch.sh --road=queued|instances --project=P --zone=Z --name=N --from=gs://BUCKET/FOLDER|FOLDER --to=FOLDER'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"
need from to

mkdir -p "$TO"
if [[ $FROM == gs://* ]]; then
  gcloud storage rsync --recursive "$FROM" "$TO" "--project=$PROJECT"
else
  get() { mkdir -p "$TO/$1" && road_get "$1" "$FROM" "$TO/$1"; }
  on_all get
fi
say "fetched $FROM to $TO"
