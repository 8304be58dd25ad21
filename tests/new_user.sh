#!/bin/sh
# What a new user does: install, compile, chat, serve, and call the server from the openai package. In an environment of
# its own; the test beside it says where everything comes from.
#
#     tests/new_user.sh SOURCE CHECKPOINT FOLDER
#
# SOURCE: a clone or a wheel of smc, CHECKPOINT: a model to compile, FOLDER: where to work. PYTHON: the interpreter.
set -eu
source=$1 checkpoint=$2 folder=$3
cd "$folder"
unset PYTHONPATH
export HOME="$folder" SMC_CACHE="$folder/cache"

"${PYTHON:-python3}" -m venv venv
. venv/bin/activate
pip install --quiet -c "$source/constraints.txt" "$source[compile,serve]" openai

smc doctor
smc compile "$checkpoint" -o model.smc
smc run model.smc --raw "Once upon a time" -n 8
printf 'Hello\n/reset\nWho are you?\n/bye\n' | smc chat model.smc -n 8

smc serve model.smc --port 0 2>serve.log &
server=$!
trap 'kill $server' EXIT
for _ in $(seq 100); do
    grep -q listening serve.log && break
    sleep 0.2
done
ADDRESS=$(sed -n 's/.*\(http:[^ ]*\).*/\1/p' serve.log) python - <<'END'
import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["ADDRESS"] + "/v1", api_key="none")
answer = client.chat.completions.create(
    model="model", messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=8
)
print("the server says:", answer.choices[0].message.content)
END
