"""The commands of those who run the service; chat_grpc/cli_admin.py says what each one takes."""
