# The project in a container:
#
#   docker build --target cpu --tag gpt2-tpu:cpu .
#   docker build --target tpu --tag gpt2-tpu:tpu .      for a TPU VM
#   docker run --rm --volume "$PWD/data:/data" gpt2-tpu:cpu make help
#   docker run --rm --privileged --network host gpt2-tpu:tpu make doctor TPU=local
#
# A TPU's container needs `--privileged`, which shows it the devices, and the host's
# network, which has the metadata server. tests/test_dockerfile.py runs these steps
# outside Docker.
FROM python:3.11-slim-bookworm AS source
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends make && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /opt/gpt2-tpu
COPY . .
ENV VENV=/opt/venv PIP_NO_CACHE_DIR=1

FROM source AS tpu
RUN make install-tpu
CMD ["make", "doctor", "TPU=local"]

FROM source AS cpu
RUN make install CONSTRAINTS=constraints.txt
CMD ["make", "help"]
