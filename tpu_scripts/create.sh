#!/usr/bin/env bash
# Asks for a slice and waits until it is ready. A create that fails or is interrupted deletes what it made.
USAGE='create.sh --road=queued|instances --project=P --zone=Z --name=N --provisioning=spot|on-demand|reservation-bound
  queued:    --accelerator-type=T --runtime-version=V
  instances: --machine-type=M --image-family=F --image-project=P --disk=SIZE --hosts=N [--topology=AxB, from two hosts]
  both:      [--network=N --subnetwork=S --internal-ips --tunnel-through-iap --service-account=A --reservation=R]'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"
need provisioning "${ROAD_NEEDS[@]}"
[[ $PROVISIONING =~ ^(spot|on-demand|reservation-bound)$ ]] ||
  usage "--provisioning is spot, on-demand or reservation-bound"
[[ $PROVISIONING != reservation-bound ]] || need reservation
[[ $PROVISIONING != spot || -z $RESERVATION ]] || usage "--reservation: what is reserved is not --provisioning=spot"
# Nothing of another's making may be deleted below.
! road_exists || fail "$NAME is there already, or cannot be looked for; delete.sh deletes it"

undo() {
  say "deleting what was made of $NAME"
  road_delete || say "not deleted: run delete.sh with the same arguments"
}
trap undo EXIT
trap 'exit 130' INT TERM HUP

say "asking for $NAME ($PROVISIONING)"
answer=$(road_create 2>&1) || fail "refused: $(complaint "$answer")"
SECONDS=0
while ((SECONDS <= WAIT)); do
  state=$(road_state)
  say "$NAME is $state after $SECONDS s"
  case $state in
    ACTIVE) trap - EXIT && exit 0 ;;
    FAILED) fail "refused: $(complaint "$(road_refusal)")" ;;
    STOPPED | SUSPEND* | PREEMPTED | TERMINATED | DELETING) fail "$NAME was taken before it was ready: $state" ;;
  esac
  sleep "$POLL"
done
fail "$NAME is still $state after $WAIT s; TPU_WAIT_SECONDS sets how long to wait"
