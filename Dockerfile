# aligngap in a container: docker build -t aligngap . && docker run --rm -v "$PWD:/study" aligngap run opening
# The packages are those of constraints.txt; torch's wheel carries CUDA, and is used with: docker run --gpus all ...
FROM python:3.11-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir wheels .

FROM python:3.11-slim
WORKDIR /install
COPY constraints.txt ./
COPY --from=build /build/wheels wheels
RUN python -m pip install --no-cache-dir --constraint constraints.txt wheels/*.whl
ENV HOME=/study
WORKDIR /study
USER 1000:1000
ENTRYPOINT ["aligngap"]
CMD ["--help"]
