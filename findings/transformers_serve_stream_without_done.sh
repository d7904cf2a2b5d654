#!/usr/bin/env bash
# transformers 5.24.0, `transformers serve`: a stream of /v1/chat/completions ends without `data: [DONE]`, which ends the
# streams of OpenAI's API and of other servers. Its last event has the finish reason and, unasked, usage. A client or proxy
# that takes a stream without [DONE] for one that was cut short takes every reply for broken; the finish reason has to do.
# Expected: [DONE]. Exits non-zero if that has changed.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers[serving]==5.24.0'
cat >"$folder/model.py" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"?": 0, **{f"w{n}": n for n in range(1, 64)}}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
template = "{% for message in messages %}{{ message.content }}{% endfor %}"
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", chat_template=template).save_pretrained(sys.argv[1])
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=None, **sizes)).save_pretrained(sys.argv[1])
PY
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" "$folder/model.py" "$folder/model" 2>/dev/null
"$folder/venv/bin/transformers" serve "$folder/model" --device cpu --port 8249 >"$folder/log" 2>&1 &
server=$!
until curl --silent --fail --output /dev/null http://127.0.0.1:8249/health; do
  kill -0 "$server"
  sleep 1
done
asked='"messages":[{"role":"user","content":"w1 w2"}],"max_tokens":3,"stream":true'
reply=$(curl --silent --no-buffer http://127.0.0.1:8249/v1/chat/completions --header 'content-type: application/json' \
  --data "{\"model\":\"$folder/model\",$asked}")
last=$(grep '^data: ' <<<"$reply" | tail -n 1)
printf 'the last event: %s\n' "$last"
grep -q '"finish_reason":"length"' <<<"$last" && grep -q '"usage"' <<<"$last" && ! grep -q 'DONE' <<<"$reply"
