# shellcheck shell=bash
# Compute Engine: v5p, v6e, 7x. An instance template, a managed group of it and, where the slice has several hosts, a
# workload policy that joins their chips; all three bear the slice's name.

ROAD_NEEDS=(machine-type image-family image-project disk hosts)
[[ ${HOSTS:-1} == 1 ]] || ROAD_NEEDS+=(topology)
REGION=${ZONE%-*}
ANYWHERE=("--project=$PROJECT" --quiet)
REGIONAL=("${ANYWHERE[@]}" "--region=$REGION") ZONAL=("${ANYWHERE[@]}" "--zone=$ZONE")

road_exists() {
  local found
  found=$(ask compute instance-groups managed describe "$NAME" "${ZONAL[@]}" '--format=value(name)')
  found+=$(ask compute instance-templates describe "$NAME" "${ANYWHERE[@]}" '--format=value(name)')
  found+=$(ask compute resource-policies describe "$NAME" "${REGIONAL[@]}" '--format=value(name)')
  [[ $found != MISSINGMISSINGMISSING ]]
}

# The scope is for gs://. A group of several TPU hosts has to be made in bulk, and its policy given as a full path.
road_create() {
  local price=(--provisioning-model=STANDARD) joined=() own=(${NETWORK:+"--network=$NETWORK"}
    ${SUBNETWORK:+"--subnet=$SUBNETWORK" "--region=$REGION"} ${INTERNAL_IPS:+--no-address}
    ${SERVICE_ACCOUNT:+"--service-account=$SERVICE_ACCOUNT"}
    ${RESERVATION:+--reservation-affinity=specific "--reservation=$RESERVATION"})
  [[ $PROVISIONING != spot ]] || price=(--provisioning-model=SPOT --instance-termination-action=STOP)
  [[ $PROVISIONING != reservation-bound ]] || price=(--provisioning-model=RESERVATION_BOUND)
  gcloud compute instance-templates create "$NAME" "${ANYWHERE[@]}" "--machine-type=$MACHINE_TYPE" "${price[@]}" "${own[@]}" \
    "--image-family=$IMAGE_FAMILY" "--image-project=$IMAGE_PROJECT" "--boot-disk-size=$DISK" \
    --maintenance-policy=TERMINATE --scopes=cloud-platform || return
  if [[ $HOSTS != 1 ]]; then
    gcloud compute resource-policies create workload-policy "$NAME" "${REGIONAL[@]}" --type=HIGH_THROUGHPUT \
      "--accelerator-topology=$TOPOLOGY" --accelerator-topology-mode=AUTO_CONNECT || return
    joined=(--target-size-policy-mode=bulk "--workload-policy=projects/$PROJECT/regions/$REGION/resourcePolicies/$NAME")
  fi
  gcloud compute instance-groups managed create "$NAME" "${ZONAL[@]}" "--template=$NAME" "--size=$HOSTS" \
    --default-action-on-vm-failure=do-nothing "${joined[@]}"
}

. "$HERE/roads/instances_hosts.sh"
