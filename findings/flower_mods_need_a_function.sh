#!/usr/bin/env bash
# Mods of a Flower ClientApp (flwr 1.42.0) run only for types of message that the app has a function for. One expects a mod
# in `ClientApp(mods=[...])` to see every message, as middleware does; but mods are wrapped around each function when
# that is registered, and the app looks for the function first. A mod that answers a type of its own by itself
# (`query.health`), counts or logs messages, or checks signatures is never called: the server gets an error reply.
#
# Seen with Python 3.11, flwr 1.42.0:
#   train (with a function): mod called 1 times
#   query.health (without): No query function registered with name 'health'; mod called 0 times
#   query.health (with a function that does nothing): mod called 1 times
# Cure: register a function for each type that a mod answers, `app.query("health")(stub)`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0
cd "$work"

FLWR_TELEMETRY_ENABLED=0 "$work/venv/bin/python" -I - <<'PY'
import sys

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
calls = []


def mod(message, context, call_next):
    calls.append(message.metadata.message_type)
    return Message(RecordDict(), reply_to=message)


def never(message, context):
    raise RuntimeError("the mod has answered")


def send(kind):
    calls.clear()
    try:
        app(Message(RecordDict(), 1, kind), Context(1, 1, {}, RecordDict(), {}))
    except ValueError as error:
        return f"{error}; mod called {len(calls)} times"
    return f"mod called {len(calls)} times"


app = ClientApp(mods=[mod])
app.train()(never)
seen = [send("train"), send("query.health")]
app.query("health")(never)
seen.append(send("query.health"))
print("train (with a function):", seen[0])
print("query.health (without):", seen[1])
print("query.health (with a function that does nothing):", seen[2])
once = "mod called 1 times"
missing = "No query function registered with name 'health'; mod called 0 times"
sys.exit(seen != [once, missing, once])
PY
