# shellcheck shell=bash
# The managed group once it is there: its state, its hosts, its end.

members() { ask compute instance-groups managed list-instances "$NAME" "${ZONAL[@]}" "--format=value($1)"; }

# ACTIVE when all hosts run. A group whose hosts are refused would try for ever: FAILED.
road_state() {
  local statuses
  statuses=$(members name,instanceStatus)
  case $statuses in
    MISSING | UNKNOWN) echo "$statuses" ;;
    *TERMINATED* | *STOP* | *SUSPEND*) echo STOPPED ;;
    *)
      if [[ $(grep -c RUNNING <<<"$statuses") == "$HOSTS" ]]; then echo ACTIVE; return; fi
      [[ -z $(road_refusal) ]] && echo PROVISIONING || echo FAILED
      ;;
  esac
}

# Why the hosts will never be there. Without capacity they still may, so that is none.
road_refusal() {
  ask compute instance-groups managed list-errors "$NAME" "${ZONAL[@]}" '--format=value(error.code,error.message)' |
    grep -iE -m 1 'quota|permission|invalid' || true
}

road_delete() {
  drop compute instance-groups managed delete "$NAME" "${ZONAL[@]}" &&
    drop compute instance-templates delete "$NAME" "${ANYWHERE[@]}" &&
    drop compute resource-policies delete "$NAME" "${REGIONAL[@]}"
}

road_hosts() {
  local names
  names=$(members name)
  [[ $names != MISSING && $names != UNKNOWN ]] && echo "$names"
}
road_ssh() { gcloud compute ssh "$1" "${ZONAL[@]}" "${REACH[@]}" "${SSH_FLAGS[@]}" "--command=$2"; }
road_put() { gcloud compute scp "$2" "$1:" "${ZONAL[@]}" "${REACH[@]}"; }
road_get() { gcloud compute scp --recurse "$1:$2" "$3" "${ZONAL[@]}" "${REACH[@]}"; }
