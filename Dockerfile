# paragator on a CPU.   docker build -t paragator .   docker run --rm -v "$PWD/runs:/home/user/runs" paragator train quickstart
# The default index may give the CUDA build of torch, several gigabytes; --build-arg TORCH_INDEX=URL adds an index of CPU builds.
FROM python:3.12-slim
ARG TORCH_INDEX=

WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE hatch_build.py ./
COPY src ./src
COPY configs ./configs
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} . \
    && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /home/user
ENTRYPOINT ["paragator"]
CMD ["--help"]
