#!/usr/bin/env bash
# Makes ~/jaxalign-env on every host: a Python that jax supports (the images' own is older), and a wheel of jaxalign.
USAGE='setup.sh --road=queued|instances --project=P --zone=Z --name=N --wheel=FILE.whl'
. "$(dirname "$0")/parts/arguments.sh"
read_arguments "$@"
need wheel
[[ -f $WHEEL ]] || usage "--wheel: there is no file $WHEEL"

SECONDS=0
until on_all road_ssh true; do # ssh answers some time after the machine runs
  ((SECONDS <= WAIT)) || fail "not every host of $NAME answers after $WAIT s"
  sleep "$POLL"
done
on_all road_put "$WHEEL"
on_all road_ssh "set -euo pipefail
curl --fail --silent --show-error --location https://astral.sh/uv/install.sh | sh -s -- --quiet
PATH=~/.local/bin:\$PATH
uv venv --quiet --clear --python 3.12 ~/jaxalign-env
uv pip install --quiet --python ~/jaxalign-env/bin/python \"jaxalign[tpu,gs] @ file://\$HOME/$(basename "$WHEEL")\"
~/jaxalign-env/bin/jaxalign --help >/dev/null"
say "$NAME is set up"
