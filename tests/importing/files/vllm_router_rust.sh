python3 -m vllm_router.launch_router --worker-urls http://w1:8000 http://w2:8000 --policy cache_aware \
    --cache-threshold 0.5 --api-key sk-for-the-workers --max-payload-size 1048576 --retry-max-retries 2 \
    --cb-failure-threshold 5 --cb-timeout-duration-secs 20 --health-check-timeout-secs 3 --health-failure-threshold 4 \
    --request-timeout-secs 900 --cors-allowed-origins https://app.example
