# syntax=docker/dockerfile:1
# Fledge for a CPU or an NVIDIA GPU (torch's own CUDA libraries; the machine brings the driver): docs/cloud.md.
FROM python:3.11-slim AS build
# Where torch comes from, if not from where everything comes from: the index of its CPU builds makes the image some gigabytes smaller.
ARG TORCH_INDEX=""
# Of pyproject.toml, separated by commas: what some recipes need is not in every image.
ARG EXTRAS=fast
RUN python -m venv /opt/fledge
WORKDIR /source
COPY pyproject.toml constraints.txt README.md ./
COPY fledge fledge
COPY recipes recipes
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/fledge/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
# torch.compile writes C++ for a CPU, and a launcher in C for each kernel of a GPU.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install --yes --no-install-recommends g++ libc6-dev
RUN useradd --create-home --uid 1000 fledge && install --directory --owner fledge --group fledge /data
COPY --from=build /opt/fledge /opt/fledge
ENV PATH=/opt/fledge/bin:$PATH
USER fledge
WORKDIR /data
# What is compiled and downloaded outlives the container if /data is a volume.
ENV XDG_CACHE_HOME=/data/.cache HF_HOME=/data/.cache/huggingface NUMBA_CACHE_DIR=/data/.cache/numba TORCHINDUCTOR_CACHE_DIR=/data/.cache/inductor
ENTRYPOINT ["fledge"]
CMD ["--help"]
