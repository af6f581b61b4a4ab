# One image for every process; the command says which one it is.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# Before the code, so that a change of code does not install everything anew.
COPY requirements/run.txt requirements/run.txt
RUN python -m pip install --require-hashes -r requirements/run.txt

COPY . .
RUN python -m pip install --no-deps --no-build-isolation . \
    && useradd --system --uid 10001 --home-dir /app chat \
    && install --directory --owner chat /app/data

USER 10001
VOLUME /app/data
EXPOSE 50052

# Healthy while messages are answered. The services of docker-compose.yml that
# are not the server bring a check of their own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["chat-grpc", "health"]

ENTRYPOINT ["chat-grpc"]
CMD ["serve"]
