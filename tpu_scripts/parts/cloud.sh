# shellcheck shell=bash
# How the roads speak with gcloud.

POLL=${TPU_POLL_SECONDS:-20}   # between two looks at a state
WAIT=${TPU_WAIT_SECONDS:-7200} # for a slice to be ready, and for its hosts to answer

# gcloud's complaint in one line, without what it printed before.
complaint() { tr -s ' \n' ' ' <<<"${1#*ERROR: }"; }

missing() { [[ $1 == *NOT_FOUND* || $1 == *"was not found"* ]]; }

# What gcloud answers: MISSING where there is no such thing, UNKNOWN (and why, on stderr) where it cannot say.
ask() {
  local answer
  if answer=$(gcloud "$@" --verbosity=error 2>&1); then
    echo "$answer"
  elif missing "$answer"; then
    echo MISSING
  else
    say "$(complaint "$answer")"
    echo UNKNOWN
  fi
}

# A deletion that is content where the thing is gone already.
drop() {
  local answer
  if ! answer=$(gcloud "$@" 2>&1) && ! missing "$answer"; then
    say "$(complaint "$answer")"
    return 1
  fi
}
