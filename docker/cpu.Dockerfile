# excl on processors alone: docker build -f docker/cpu.Dockerfile -t excl:cpu .
FROM python:3.12-slim-bookworm

# PyTorch without CUDA, which is a tenth as large; excl's own installation then finds it there.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11" "torchvision>=0.26"

WORKDIR /src
COPY pyproject.toml setup.cfg setup.py README.md LICENSE __init__.py py.typed ./
COPY datasets datasets
COPY models models
COPY pipeline pipeline
COPY workflows workflows
RUN pip install --no-cache-dir . && rm -rf /src/* && excl --version

ENV EXCL_CACHE=/cache
RUN useradd --create-home --uid 1000 excl && mkdir --mode=1777 /cache /data
USER 1000
WORKDIR /data
VOLUME ["/cache", "/data"]
ENTRYPOINT ["excl"]
CMD ["--help"]
