#!/usr/bin/env bash
# Create or repair .venv with the pinned dependencies. `make setup` calls this; running it again is safe.
#
# PYTHON=/path/to/python chooses the interpreter. uv installs; where it is missing, pip brings it into .venv.
# torch: the CUDA build for the driver of an NVIDIA GPU, the CPU build everywhere else; UV_TORCH_BACKEND=cpu,
# cu126, auto and so on chooses. Everything else comes from where pip's configuration says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly UNFINISHED=$VENV/.unfinished # stands while packages are being installed
readonly OLDEST=3.11

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < (${OLDEST/./, }))" 2>/dev/null; }

find_python() {
    local name version found=""
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        version=$(version_of "$name") || continue # absent, or a shim with nothing behind it
        if new_enough "$name"; then
            command -v "$name"
            return
        fi
        found+="${found:+, }$name is $version"
    done
    fail "Python $OLDEST or newer is needed; found: ${found:-no working ${PYTHON:-python3}}." \
        "Choose one with: make setup PYTHON=/path/to/python$OLDEST"
}

# apt_install REASON PACKAGE...: install as root, or else say the one line that does.
apt_install() {
    local reason=$1
    shift
    command -v apt-get >/dev/null || fail "$reason. Install the equivalent of: $*; then run this again."
    if [ "$(id -u)" != 0 ]; then
        fail "$reason. Run this, then set-up again:"$'\n'"    sudo apt-get install -y $*"
    fi
    say "$reason: installing $*"
    export DEBIAN_FRONTEND=noninteractive
    local command=(apt-get install -y -qq --no-install-recommends "$@")
    if ! "${command[@]}" >/dev/null 2>&1; then # fresh images have no package lists yet
        { apt-get update -qq && "${command[@]}"; } >/dev/null || fail "apt-get could not install $*"
    fi
}

# The uv on PATH or in .venv. One too old to clear an environment is too old to choose torch's build.
find_uv() {
    local name
    for name in uv "$VENV/bin/uv"; do
        if [[ $("$name" venv --help 2>/dev/null) == *--clear* ]]; then
            printf '%s' "$name"
            return
        fi
    done
    return 1
}

# hand_over OPTION VARIABLE [SEPARATOR]: pip's option, if set, becomes uv's variable, unless that is set.
hand_over() {
    local section line found="" words
    [ -z "${!2:-}" ] || return 0
    for section in global install :env:; do # as pip reads them: the last one holds
        while IFS= read -r line; do
            if [[ $line == "$section.$1="* ]]; then found=${line#*=}; fi
        done <<<"$PIP_SETTINGS"
    done
    found=${found//[\'\"]/}
    read -r -a words <<<"${found//\\n/ }" # pip.conf holds one value a line
    local IFS=${3:- }
    if [ "${#words[@]}" -gt 0 ]; then export "$2=${words[*]}"; fi
}

# configure_uv UV PYTHON: uv does not read pip's configuration; hand over where packages come from.
configure_uv() {
    local PIP_SETTINGS
    mkdir -p "$("$1" cache dir)" 2>/dev/null || export UV_NO_CACHE=1 # a home that cannot be written to
    PIP_SETTINGS=$("$2" -m pip config list 2>/dev/null) || return 0
    # pip takes the best version that any index has; uv by itself the first index that knows the name.
    [ -n "${UV_INDEX:-}" ] || export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    hand_over index-url UV_DEFAULT_INDEX
    hand_over extra-index-url UV_INDEX
    hand_over find-links UV_FIND_LINKS ,
    hand_over no-index UV_OFFLINE
    hand_over trusted-host UV_INSECURE_HOST
    hand_over cert SSL_CERT_FILE
    hand_over proxy ALL_PROXY
    hand_over timeout UV_HTTP_TIMEOUT
    hand_over default-timeout UV_HTTP_TIMEOUT
}

make_venv() {
    local python uv
    python=$(find_python)
    say "creating $VENV with $python ($(version_of "$python"))"
    if uv=$(find_uv) && [ "$uv" = uv ]; then
        configure_uv uv "$python"
        uv venv -q --clear --seed --python "$python" "$VENV"
        return
    fi
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        # Debian ships both in a package of their own, one per Python version.
        apt_install "$python cannot make virtual environments" \
            "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    "$python" -m venv --clear "$VENV"
}

# The installed version of torch, if it is the pinned one, whatever its build.
pinned_torch() {
    local version line
    version=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>&1)
    while IFS= read -r line; do
        if [ "$line" = "torch==${version%+*}" ]; then
            printf '%s' "$version"
            return
        fi
    done <constraints.txt
    return 1
}

install_packages() {
    local uv install backend
    touch "$UNFINISHED"
    if ! uv=$(find_uv); then
        say "installing uv"
        "$VENV/bin/python" -m pip install --disable-pip-version-check -q -c constraints.txt uv
        uv=$VENV/bin/uv
    fi
    configure_uv "$uv" "$VENV/bin/python"
    install=("$uv" pip install -q --python "$VENV/bin/python" -c constraints.txt)
    # pip compiles what it installs, uv leaves that to the first import, which is forbidden to keep it here.
    if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then install+=(--compile-bytecode); fi
    if ! pinned_torch >/dev/null; then # alone: its build is settled before the rest is resolved
        # By itself uv would take the XPU build, of gigabytes too, for the graphics of an Intel processor.
        if nvidia-smi -L >/dev/null 2>&1; then backend=auto; else backend=cpu; fi
        backend=${UV_TORCH_BACKEND:-$backend}
        say "installing torch (the largest download)"
        if UV_HTTP_RETRIES=1 "${install[@]}" --dry-run --torch-backend="$backend" torch 2>/dev/null; then
            "${install[@]}" --torch-backend="$backend" torch
        else
            say "PyTorch's own index cannot be reached; taking torch from pip's, often with 3 GB of CUDA"
            "${install[@]}" torch
        fi
    fi
    unset UV_TORCH_BACKEND # the build stays as it is
    say "installing the other packages"
    "${install[@]}" -e '.[dev]'
    rm -f "$UNFINISHED"
}

# opencv-python links against libraries that a bare Debian or Ubuntu does not have.
check_opencv() {
    local message glib=libglib2.0-0
    message=$("$VENV/bin/python" -c 'import cv2' 2>&1) && return
    case $message in
        *"cannot open shared object file"*) ;; # libGL, libgthread or libxcb, whichever is missed first
        *) fail "OpenCV does not load: ${message##*$'\n'}" ;;
    esac
    # Debian 13 and Ubuntu 24.04 renamed the package.
    if apt-cache show libglib2.0-0t64 >/dev/null 2>&1; then glib=libglib2.0-0t64; fi
    apt_install "OpenCV needs system libraries that are not installed" libgl1 "$glib"
    message=$("$VENV/bin/python" -c 'import cv2' 2>&1) || fail "OpenCV does not load: ${message##*$'\n'}"
}

if ! { [ -x "$VENV/bin/python" ] && new_enough "$VENV/bin/python" &&
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }; then
    make_venv
elif [ -e "$UNFINISHED" ]; then
    say "an earlier set-up did not finish; starting over"
    make_venv
fi
install_packages
check_opencv
say "ready: $VENV (Python $(version_of "$VENV/bin/python"), torch $(pinned_torch))"
