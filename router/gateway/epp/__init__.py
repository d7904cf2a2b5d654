"""The endpoint picker of Envoy and of gateways like it: the same core decides, and the proxy carries the bytes."""
