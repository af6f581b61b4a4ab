"""gRPC at the edge: servicers convert in, call, convert out; interceptors hold what every call shares."""
