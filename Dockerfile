# The torch wheels include CUDA, so a slim Python image is enough; the host provides the GPU's driver.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /app

# dependencies first, so that a change of the code does not download them again
COPY requirements.txt ./
RUN pip install --requirement requirements.txt

COPY main.py smoke_test.py ./
COPY scripts ./scripts
COPY tools ./tools

# the commit of the code, for config.json: docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD)
ARG COMMIT=unknown
ENV MEDMNIST_COMMIT=$COMMIT

# any --user can write both folders, and read the code even if the checkout was private (umask 077);
# mount both folders, or --rm deletes data and results with the container
RUN mkdir -m 1777 dataset outputs && chmod -R a+rX main.py smoke_test.py scripts tools

ENTRYPOINT ["python", "main.py"]
