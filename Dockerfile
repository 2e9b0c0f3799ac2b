# The torch wheels bring CUDA along, so a slim Python image is all that is needed; the host gives the GPU's driver.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /app

# dependencies first: a change of the code does not download them again
COPY requirements.txt ./
RUN pip install --requirement requirements.txt

COPY main.py smoke_test.py ./
COPY scripts ./scripts
COPY tools ./tools

# which commit the code is of, for config.json: docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD)
ARG COMMIT=unknown
ENV MEDMNIST_COMMIT=$COMMIT

# for whichever --user runs it: folders to write, and code to read even if the checkout was private (umask 077);
# mount both folders, or --rm takes data and results along
RUN mkdir -m 1777 dataset outputs && chmod -R a+rX main.py smoke_test.py scripts tools

ENTRYPOINT ["python", "main.py"]
