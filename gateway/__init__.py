"""The REST facade: gateway.v1, which Envoy makes of HTTP and JSON."""
