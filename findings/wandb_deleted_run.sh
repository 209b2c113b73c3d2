#!/usr/bin/env bash
# A W&B run that was deleted on the site, and is resumed.
#
# Guessed: wandb.init(id=..., resume="allow") of a run that was deleted makes it again, or says at once that it cannot.
# True:    the server answers 409 ("previously created and deleted; try a new run id"), which no repetition changes.
#          wandb repeats it until init_timeout (90 s by default), and then raises CommError, whose advice is to raise
#          init_timeout. Resuming takes another id.
# Versions: wandb 0.31.0, Python 3.11, against a server of one's own that answers as wandb.ai is reported to.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
server=
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
cd "$folder"
cat >server.py <<'PY'
import http.server, json

REFUSAL = "run me/p/abcd1234 was previously created and deleted; try a new run id"
VIEWER = {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        code, answer = 200, {"data": {}}
        if b"upsertBucket" in body:
            with open("tries", "a") as tries:
                tries.write("1")
            code, answer = 409, {"errors": [{"message": REFUSAL}], "data": {"upsertBucket": None}}
        elif b"viewer" in body.lower():
            answer = {"data": VIEWER | {"serverInfo": {}}}
        elif b"RunResumeStatus" in body:
            answer = {"data": {"model": None}}
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open("port.new", "w") as file:
    file.write(str(server.server_port))
import os

os.rename("port.new", "port")
server.serve_forever()
PY
venv/bin/python server.py &
server=$!
until [[ -s port ]]; do sleep 0.1; done
cat >resume.py <<'PY'
import time

import wandb

started, said = time.monotonic(), ""
try:  # 20 s in place of 90
    wandb.init(project="p", id="abcd1234", resume="allow", settings=wandb.Settings(console="off", init_timeout=20))
except wandb.Error as error:
    said = f"{type(error).__name__}: {error}"
seconds, tries = time.monotonic() - started, len(open("tries").read())
print(said)
print(f"refused {tries} times in {seconds:.0f} s")
assert "409" in said and "previously created and deleted" in said, "another answer than was found"
assert "init_timeout" in said, "the advice has changed"
assert seconds > 15 and tries > 1, "it is not repeated any more"
PY
export WANDB_BASE_URL="http://127.0.0.1:$(cat port)" WANDB_API_KEY=0123456789012345678901234567890123456789 WANDB_SILENT=true
venv/bin/python resume.py
