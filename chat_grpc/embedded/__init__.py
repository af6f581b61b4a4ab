"""What lets one machine run everything: memvid, Envoy, a local model, and the command that starts them."""
