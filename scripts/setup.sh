#!/usr/bin/env bash
# Create or repair .venv with the pinned dependencies. `make setup` calls this; running it again is safe.
#
# PYTHON=/path/to/python chooses the interpreter. Which build of torch is installed (CPU or CUDA) follows
# pip's own configuration: its environment variables and pip.conf are left as they are.
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

make_venv() {
    local python
    python=$(find_python)
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        # Debian ships both in a package of their own, one per Python version.
        apt_install "$python cannot make virtual environments" \
            "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "creating $VENV with $python ($(version_of "$python"))"
    "$python" -m venv --clear "$VENV"
}

install_packages() {
    local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check -q -c constraints.txt)
    touch "$UNFINISHED"
    if ! "$VENV/bin/python" -m pip show -q torch 2>/dev/null; then
        say "installing torch (the largest download)"
        "${pip[@]}" torch # alone: its build is settled before pip resolves the rest
    fi
    say "installing the other packages"
    "${pip[@]}" -e '.[dev]'
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
say "ready: $VENV ($(version_of "$VENV/bin/python"))"
