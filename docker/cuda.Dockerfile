# excl on NVIDIA GPUs: docker build -f docker/cuda.Dockerfile -t excl:cuda . && docker run --gpus all excl:cuda doctor
# PyTorch's own packages bring CUDA and cuDNN; the host needs a driver for them and the NVIDIA Container Toolkit.
FROM python:3.12-slim-bookworm

# FFmpeg's libraries, which torchcodec decodes with.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml setup.cfg setup.py README.md LICENSE __init__.py py.typed ./
COPY datasets datasets
COPY models models
COPY pipeline pipeline
COPY workflows workflows
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[torchcodec]" && rm -rf /src/* && excl --version

# "video" gives the container the driver's decoder (NVDEC).
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENV EXCL_CACHE=/cache
RUN useradd --create-home --uid 1000 excl && mkdir --mode=1777 /cache /data
USER 1000
WORKDIR /data
VOLUME ["/cache", "/data"]
ENTRYPOINT ["excl"]
CMD ["--help"]
