"""chat-grpc: a gRPC-native chat service."""

__version__ = "0.1.0"
