"""A gcloud without a cloud: the commands that tpu_scripts uses, on a world kept in the folder $FAKE_GCLOUD.

It refuses what `gcloud_reference` does not know, logs each call to `calls.jsonl`, and plays what `scenario.json` says
(`Scenario`). Hosts are folders: ssh runs the command there with bash, with stand-ins for what a TPU machine finds on
the network (curl, uv) and for jaxalign itself.
"""

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from gcloud_reference import end, parse

FOLDER = Path(os.environ["FAKE_GCLOUD"])
QUOTA = "Quota limit 'TPUChipsPerProjectPerZone' has been exceeded. Limit: 0 in zone."


class Run(TypedDict, total=False):
    """One start of a command on all hosts: each host's exit code, and whether the slice is taken meanwhile."""

    codes: list[int]
    taken: str  # the state shown from then on: SUSPENDED, FAILED, PREEMPTED, MISSING; TERMINATED on Compute Engine
    late: int  # how often the state still looks healthy


class Scenario(TypedDict, total=False):
    """What happens to those who ask."""

    hosts: int
    quota: str  # "asked": refused at once; "granted": refused while provisioning
    waiting: int  # how often a new slice is seen not ready
    lost: str  # the state that a new slice comes to, in place of ready
    dead: list[int]  # hosts that ssh does not reach
    broken: list[str]  # commands that fail, as on a network that is down
    runs: list[Run]


@contextmanager
def world() -> Iterator[dict[str, Any]]:
    """The state of everything, read and written by one process at a time."""
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = FOLDER / "state.json"
        state = json.loads(file.read_text()) if file.exists() else {"things": {}, "runs": {}}
        try:
            yield state
        finally:
            (FOLDER / "state.new").write_text(json.dumps(state))
            (FOLDER / "state.new").replace(file)


def thing(state: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    if f"{kind} {name}" not in state["things"]:
        if kind == "queued-resources":
            end(f"NOT_FOUND: Resource 'projects/p/{kind}/{name}' was not found")
        end(f"Could not fetch resource:\n - The resource 'projects/p/{kind}/{name}' was not found\n")
    return state["things"][f"{kind} {name}"]


def make(state: dict[str, Any], kind: str, name: str, **facts: Any) -> None:
    if f"{kind} {name}" in state["things"]:
        end(f"Could not fetch resource:\n - The resource '{kind}/{name}' already exists\n")
    state["things"][f"{kind} {name}"] = {"name": name, "looks": 0, **facts}


def remove(state: dict[str, Any], kind: str, name: str) -> None:
    thing(state, kind, name)
    del state["things"][f"{kind} {name}"]


def look(slice_: dict[str, Any], scenario: Scenario) -> str:
    """What is seen of a slice: it moves on with each look."""
    slice_["looks"] += 1
    taken = slice_.get("taken")
    if taken:
        slice_["late"] -= 1
        return "ACTIVE" if slice_["late"] >= 0 else taken
    if slice_["looks"] <= scenario.get("waiting", 0):
        return "PROVISIONING" if slice_["looks"] > 1 else "WAITING_FOR_RESOURCES"
    return "FAILED" if scenario.get("quota") == "granted" else scenario.get("lost", "ACTIVE")


def members(name: str, scenario: Scenario) -> list[str]:
    return [f"{name}-{suffix}" for suffix in "qwer"[: scenario.get("hosts", 2)]]


def forget_hosts() -> None:
    """New machines know nothing of those before them."""
    import shutil  # here, and so below: each call is a process of its own, and most need neither of these

    shutil.rmtree(FOLDER / "hosts", ignore_errors=True)


def queued(verb: str, names: list[str], flags: dict[str, str], scenario: Scenario) -> None:
    """The Cloud TPU API. A request that is granted has a node under the name asked for."""
    name = names[0]
    with world() as state:
        if verb == "create":
            make(state, "queued-resources", name, node=flags["node-id"])
            forget_hosts()
            print(f"Create request issued for: [{name}]\nWaiting for operation ...", file=sys.stderr)
            if scenario.get("quota") == "asked":
                end(f"RESOURCE_EXHAUSTED: {QUOTA}", 1)
            return
        request = thing(state, "queued-resources", name)
        if verb == "delete":
            if "force" not in flags:
                end("FAILED_PRECONDITION: the queued resource has nodes")
            remove(state, "queued-resources", name)
        elif flags["format"] == "value(name)":
            print(f"projects/p/locations/z/queuedResources/{name}")
        elif flags["format"] == "value(state.state)":
            seen = look(request, scenario)
            print("ACTIVE" if seen in ("PREEMPTED", "MISSING") else seen)
        elif flags["format"] == "value(state.failedData.error.message)":
            print(QUOTA)
        else:
            end(f"no such field: {flags['format']}")


def node(names: list[str], flags: dict[str, str], scenario: Scenario) -> None:
    with world() as state:
        request = thing(state, "queued-resources", names[0])
        taken = request.get("taken") if request.get("late", 0) < 0 else None
        if taken in ("MISSING", "SUSPENDED") or request["node"] != names[0]:
            end(f"NOT_FOUND: Resource 'projects/p/nodes/{names[0]}' was not found")
        if flags["format"] == "value(state)":
            print(taken or "READY")
        elif flags["format"] == "value(networkEndpoints.len())":
            print(scenario.get("hosts", 2))
        else:
            end(f"no such field: {flags['format']}")


def compute(kind: str, verb: str, names: list[str], flags: dict[str, str], scenario: Scenario) -> None:
    """Compute Engine: templates, policies and groups."""
    name = names[0]
    with world() as state:
        if verb.startswith("create"):
            if kind == "managed":
                thing(state, "instance-templates", flags["template"])
                if policy := flags.get("workload-policy"):
                    thing(state, "resource-policies", policy.rpartition("/")[2])
                    if flags.get("target-size-policy-mode") != "bulk":
                        end("MIGs with TPU accelerator topology require BULK mode in target size policy")
                forget_hosts()
                if int(flags["size"]) != scenario.get("hosts", 2):
                    end(f"the machine type makes {scenario.get('hosts', 2)} hosts")
            make(state, kind, name)
            if kind == "managed" and scenario.get("quota") == "asked":
                end(f"Could not fetch resource:\n - {QUOTA}")
        elif verb == "delete":
            if kind == "instance-templates" and f"managed {name}" in state["things"]:
                end("The instance_template resource is already being used by the group")
            remove(state, kind, name)
        elif verb == "describe":
            print(thing(state, kind, name)["name"])
        elif verb == "list-errors":
            if scenario.get("quota") == "granted" and thing(state, kind, name)["looks"] > scenario.get("waiting", 0):
                print(f"QUOTA_EXCEEDED\t{QUOTA}")
            else:
                print("ZONE_RESOURCE_POOL_EXHAUSTED\tThe zone does not have enough resources.")
        elif flags["format"] == "value(name)":
            thing(state, kind, name)
            print("\n".join(members(name, scenario)))
        else:
            seen = look(thing(state, kind, name), scenario)
            status = {"ACTIVE": "RUNNING", "WAITING_FOR_RESOURCES": "", "FAILED": ""}.get(seen, seen)
            for host in members(name, scenario):
                print(f"{host}\t{status}")


def host_folder(host: str) -> Path:
    """A machine as it comes: a home, and what the network would give it."""
    home = FOLDER / "hosts" / host
    if not home.exists():
        import shutil

        home.mkdir(parents=True)
        stubs = Path(__file__).parent / "stubs"
        shutil.copytree(stubs, home / "network")
    return home


def ssh(index: int, host: str, command: str, scenario: Scenario) -> int:
    """Runs the command in the host's folder. A run of jaxalign's own ends as the scenario says."""
    if index in scenario.get("dead", []):
        print(f"ssh: connect to host {host} port 22: Connection timed out", file=sys.stderr)
        return 255
    code = 0
    if marker := re.search(r"jaxalign-run-[0-9-]+", command):
        with world() as state:
            number = state["runs"].setdefault(marker[0], len(state["runs"]))
            runs = scenario.get("runs", [])
            run: Run = runs[number] if number < len(runs) else {}
            code = run.get("codes", [0] * 8)[index]
            if "taken" in run:
                for fact in state["things"].values():
                    fact.update(taken=run["taken"], late=run.get("late", 0))
    import subprocess

    home = host_folder(host)
    path = f"{home / 'network'}:/usr/bin:/bin"
    variables = {"HOME": str(home), "PATH": path, "HOST": host, "JAXALIGN_ENDS_WITH": str(code)}
    done = subprocess.run(["bash", "-c", command], env=variables, cwd=home, check=False).returncode
    return 255 if code == 255 else done


def scp(names: list[str], folder: Any) -> None:
    import shutil

    source, target = names
    if ":" in source:
        host, _, path = source.partition(":")
        shutil.copytree(folder(host) / path, Path(target) / Path(path).name)
    else:
        shutil.copy(source, folder(target.partition(":")[0]))


def main() -> None:
    arguments = sys.argv[1:]
    command, names, flags = parse(arguments)
    scenario: Scenario = json.loads((FOLDER / "scenario.json").read_text())
    with world(), open(FOLDER / "calls.jsonl", "a") as calls:
        calls.write(json.dumps({"command": command, "names": names, "flags": flags}) + "\n")
    if command in scenario.get("broken", []):
        end("There was a problem refreshing your current auth tokens")
    *group, verb = command.split()
    if command.startswith("compute tpus tpu-vm describe"):
        node(names, flags, scenario)
    elif command.endswith("ssh"):
        host = flags.get("worker", names[0])
        index = int(host) if "worker" in flags else members(names[0][:-2], scenario).index(host)
        raise SystemExit(ssh(index, host, flags["command"], scenario))
    elif command.endswith("scp"):
        scp(names, (lambda _: host_folder(flags["worker"])) if "worker" in flags else host_folder)
    elif command == "storage rsync":
        import shutil

        shutil.copytree(FOLDER / names[0].replace("gs://", "bucket/"), names[1], dirs_exist_ok=True)
    elif "queued-resources" in group:
        queued(verb, names, flags, scenario)
    else:
        kind = "resource-policies" if verb == "workload-policy" else group[-1]
        compute(kind, "create" if verb == "workload-policy" else verb, names, flags, scenario)
