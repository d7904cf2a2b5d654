#!/bin/sh
HF_TOKEN=hf_a-secret exec vllm-router \
  --host 0.0.0.0 --port 8001 \
  --service-discovery static \
  --static-backends "http://a:8000,http://b:8000/v1" \
  --static-models llama,llama \
  --static-aliases chat:llama \
  --routing-logic session --session-key x-user-id \
  --engine-stats-interval 10 --log-stats \
  --made-up-option 3
