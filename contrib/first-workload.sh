#!/bin/sh
# Starts Nuée and runs a first workload in front of the user: an image built from a Dockerfile, run by docker and by kubectl.
set -eu

data="${DATA_DIR:-/var/lib/nuee}"
nuee="${NUEE:-nuee}"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

if ! "$nuee" status --data-dir "$data" >/dev/null 2>&1; then
    say "Starting Nuée"
    show "$nuee" up --detach --data-dir "$data"
fi
export DOCKER_HOST="unix://$data/docker.sock" DOCKER_BUILDKIT=0 KUBECONFIG="$data/kubeconfig"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp /bin/busybox "$work/busybox"
echo 'Hello from your cloud.' > "$work/index.html"
cat > "$work/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/bin
WORKDIR /www
COPY index.html .
EXPOSE 80
CMD ["httpd", "-f", "-p", "80"]
DOCKERFILE

say "Building an image with docker"
show docker build --tag hello "$work"

say "Running it with docker"
docker rm --force hello >/dev/null 2>&1 || true
show docker run --detach --name hello --publish 8080:80 hello
show curl --silent --show-error --fail --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8080/

say "Running the same image with kubectl"
kubectl delete deployment,service hello --ignore-not-found >/dev/null
show kubectl create deployment hello --image=hello
show kubectl rollout status deployment/hello --timeout=60s
show kubectl expose deployment hello --port=80
address=$(kubectl get service hello -o 'jsonpath={.spec.clusterIP}')
show curl --silent --show-error --fail --retry 20 --retry-connrefused --retry-delay 1 "http://$address/"

say "It stays up. Next:"
endpoint() { "$nuee" status --data-dir "$data" -o json | sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p"; }
echo "  export DOCKER_HOST=$(endpoint docker)    # then: docker ps"
echo "  export KUBECONFIG=$(endpoint kubeconfig)    # then: kubectl get pods"
echo "  make down                                   # stop everything"
