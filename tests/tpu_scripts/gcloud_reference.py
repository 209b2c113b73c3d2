"""The commands of gcloud that tpu_scripts uses, with the flags that its reference gives them; all else is refused."""

import re
import sys
from typing import NoReturn

# Command -> (positional arguments, flags that it must have, flags that it may have).
WIDE = {"project", "quiet", "format", "verbosity"}
SSH = {"zone", "command", "ssh-flag"}
REACH = {"internal-ip", "tunnel-through-iap"}
NODE = {"zone", "node-id", "accelerator-type", "runtime-version"}
WISHES = {"spot", "valid-until-duration", "network", "subnetwork", "internal-ips", "service-account", "reserved"}
TEMPLATE = {"machine-type", "image-family", "image-project", "boot-disk-size", "maintenance-policy", "scopes"}
COMMANDS: dict[str, tuple[int, set[str], set[str]]] = {
    "compute tpus queued-resources create": (1, NODE, WISHES),
    "alpha compute tpus queued-resources create": (1, NODE, WISHES | {"reservation", "provisioning-model"}),
    "compute tpus queued-resources describe": (1, {"zone", "format"}, set()),
    "compute tpus queued-resources delete": (1, {"zone", "quiet"}, {"force"}),
    "compute tpus tpu-vm describe": (1, {"zone", "format"}, set()),
    "compute tpus tpu-vm ssh": (1, SSH | {"worker"}, {"internal-ip"}),
    "compute tpus tpu-vm scp": (2, {"zone", "worker"}, {"recurse", "internal-ip"}),
    "alpha compute tpus tpu-vm ssh": (1, SSH | {"worker"}, REACH),
    "alpha compute tpus tpu-vm scp": (2, {"zone", "worker"}, {"recurse"} | REACH),
    "compute instance-templates create": (
        1,
        TEMPLATE,
        {"provisioning-model", "instance-termination-action", "network", "subnet", "region", "no-address"}
        | {"service-account", "reservation-affinity", "reservation"},
    ),
    "compute instance-templates describe": (1, {"format"}, set()),
    "compute instance-templates delete": (1, {"quiet"}, set()),
    "compute resource-policies create workload-policy": (
        1,
        {"region", "type"},
        {"accelerator-topology", "accelerator-topology-mode"},
    ),
    "compute resource-policies describe": (1, {"region", "format"}, set()),
    "compute resource-policies delete": (1, {"region", "quiet"}, set()),
    "compute instance-groups managed create": (
        1,
        {"zone", "template", "size"},
        {"default-action-on-vm-failure", "target-size-policy-mode", "workload-policy"},
    ),
    "compute instance-groups managed describe": (1, {"zone", "format"}, set()),
    "compute instance-groups managed list-instances": (1, {"zone", "format"}, set()),
    "compute instance-groups managed list-errors": (1, {"zone", "format"}, set()),
    "compute instance-groups managed delete": (1, {"zone", "quiet"}, set()),
    "compute ssh": (1, SSH, REACH),
    "compute scp": (2, {"zone"}, {"recurse"} | REACH),
    "storage rsync": (2, set(), {"recursive"}),
}
SWITCHES = {"quiet", "spot", "force", "recurse", "recursive", "internal-ips", "no-address", "reserved"} | REACH
VALUES = {
    "type": "HIGH_AVAILABILITY|HIGH_THROUGHPUT",
    "accelerator-topology": r"\d+(x\d+)+",
    "accelerator-topology-mode": "AUTO_CONNECT|PROVISION_ONLY",
    "provisioning-model": "STANDARD|SPOT|RESERVATION_BOUND|reservation-bound",
    "reservation-affinity": "any|none|specific",
    "instance-termination-action": "STOP|DELETE",
    "maintenance-policy": "TERMINATE",
    "scopes": "cloud-platform",
    "boot-disk-size": r"\d+(GB|TB)",
    "target-size-policy-mode": "bulk|individual",
    "default-action-on-vm-failure": "repair|do-nothing|delete",
    "workload-policy": r"projects/[^/]+/regions/[^/]+/resourcePolicies/[^/]+",
    "valid-until-duration": r"\d+s",
    "worker": r"\d+|all",
    "size": r"\d+",
    "zone": "[a-z]+-[a-z]+[0-9]-[a-z]",
    "region": "[a-z]+-[a-z]+[0-9]",
    "ssh-flag": r"-o\w+=\w+",
}


def end(message: str, code: int = 1) -> NoReturn:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    raise SystemExit(code)


def parse(arguments: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """The command, its positional arguments and its flags; refuses what gcloud does not know."""
    positional = [word for word in arguments if not word.startswith("--")]
    command = max((c for c in COMMANDS if positional[: len(c.split())] == c.split()), key=len, default=None)
    if command is None:
        end(f"Invalid choice: {' '.join(positional)}", 2)
    count, required, optional = COMMANDS[command]
    flags: dict[str, str] = {}
    for word in arguments:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            if name not in WIDE | required | optional or bool(given) == (name in SWITCHES):
                end(f"unrecognized arguments: {word}", 2)
            if name in VALUES and not re.fullmatch(VALUES[name], value):
                end(f"argument --{name}: Invalid value: {value!r}", 2)
            flags[name] = value
    if missing := (required | {"project"}) - set(flags):
        end(f"argument --{min(missing)}: Must be specified.", 2)
    names = positional[len(command.split()) :]
    if len(names) != count:
        end(f"expected {count} positional arguments, got {names}", 2)
    return command, names, flags
