# grace serve in a container, from this checkout:
#
#     docker build --tag grace .
#     docker run --rm --publish 127.0.0.1:8080:8080 --volume grace-cache:/cache grace
#
# It listens to everybody inside the container, and only to this machine by the --publish above. Models beside the
# bundled ones come from a folder (--volume /my/model:/model:ro, then `grace serve --host 0.0.0.0 --model /model`).
# grace-small, the default model, is in the image with its policy, so it starts without a network.
# For GPUs leave the extra index out, and give the container its GPUs.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY grace_retrieval grace_retrieval
COPY integrations integrations
COPY training training
COPY benchmarks benchmarks
RUN python -m venv /opt/grace \
    && /opt/grace/bin/pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu ".[serve,cpu,hybrid]"

FROM python:3.11-slim
COPY --from=build /opt/grace /opt/grace
RUN useradd --uid 10001 --create-home grace \
    && install --directory --owner grace --group grace /cache /index
ENV PATH=/opt/grace/bin:$PATH \
    GRACE_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface
USER 10001
WORKDIR /home/grace
# A new volume begins with what the image has in its place.
RUN grace fetch SmolLM2-135M-Instruct
VOLUME /cache
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/live', timeout=4)"]
ENTRYPOINT ["grace"]
CMD ["serve", "--host", "0.0.0.0"]
